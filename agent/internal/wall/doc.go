// Package wall turns the runtime's flight recorder into exact wall-clock profiles of slow spans: every
// nanosecond between the start and the end of a span, on the CPU and off it, with the stack and the
// reason. The agent starts one [Recorder], gives it to package spanlink as the receiver of span marks,
// and receives the records that it emits. It is not a profiler of the whole process, it does not sample,
// and it knows neither disk nor network.
//
// # How it works
//
// [Recorder.Begin] and the returned mark's End write one line each into the execution trace, on the
// goroutine that calls them, and maintain the tree of running spans. When a local root span ends that took
// at least Options.SlowSpan, the recorder takes a snapshot of the flight recorder's ring
// and replays it once: who ran, who waited for what, and inside which span. A generation of the trace
// (about a second of it) is converted at most once. The accounts of spans that are still running
// are carried to the next snapshot, so a span of a minute is covered like one of a tenth of a second.
// While a slow span runs, snapshots are taken before the ring overwrites its trace.
//
// # When it records
//
// All of that is charged to a budget: also the writing of the trace, which the goroutines of the service do and which cannot
// be measured. It is estimated from how often goroutines are scheduled and spans begin, at a price for an event that is
// measured when the recorder starts. Where recording all the time fits into the budget, the recorder is always on. Where it
// does not, it is armed: the flight recorder does not run and spans write no marks, until a root span has been running for a fifth of
// Options.SlowSpan. Then it runs until no such root is left, and for as long as it would have cost as much to start it
// again. Spans that began before are put onto the goroutines on which they began, whose numbers they have; the end of a
// first, short generation of the trace has the stacks of the goroutines that were waiting. The time before is "[before the
// recording]". Where the budget is spent even so, it is a duty cycle: roots are recorded while there is budget, and half of
// that is for names that had no capture lately. Where there are sampled roots, three quarters are for these.
// A [Mode] is left only when the cost differs clearly from what led to it.
//
// # What belongs to a span
//
// A span's own time is the time between its two marks on its own goroutine: the one it was started on.
// Each nanosecond of it is in exactly one state. Running time has no leaf frame of its own: it ends in
// the function that ran (from the CPU profiler's samples where there are any, else from the nearest
// event that has a stack). Where that sample or event is more than 20 ms away, the stack has the leaf frame "[running: no CPU
// sample]", for the function is not certain. Every other state is a leaf frame in brackets, such as "[waiting: mutex]",
// "[runnable: waiting for CPU]" or "[syscall]".
//
// Frames begin with the path of spans from the local root to the innermost span that the goroutine was
// in ("span: POST /checkout", "span: pricing"), then the code. If several spans of one trace are
// open on one goroutine, the one that started last gets the time in the profiles of their ancestors,
// whether they are nested or merely overlap. An overlapped span has that time in its own profile as
// well, and so do two local roots that are open on one goroutine: each accounts for the whole of its
// own extent.
//
// Goroutines started while their creator was inside a span, and their own children, stand below the
// frame "[other goroutines working for this span]", directly under the path of the profile's span, and
// so do other goroutines on which child spans were started, while these run. The rest of the profile
// therefore sums to the span's duration exactly. Such a goroutine that outlives the span it was started
// in is counted for the nearest ancestor that still runs, and not at all after the local root's end.
//
// The time between the span's own start and its mark is "[starting the span]". It is usually a
// microsecond; on a busy machine the goroutine may have had to wait there, and a span whose author set its
// start to an earlier moment has this state from that moment on. Whether a span is slow is decided by its own
// start and end. The time between the mark of the end and
// the span's own end is "[ending the span]" in the same way.
//
// A coroutine, such as that of iter.Pull, runs in the place of the goroutine that resumes it, and its time is that
// goroutine's own.
//
// A span that ends on another goroutine than it started on has moved. If that goroutine descends from
// the span's own through goroutines started inside the span, its own time follows the line of descent:
// the starter until it started the next one, and so on to the one that ended the span. If it does not
// descend (a pool worker that was there before), own time stays with the starter until it exits or
// starts an unrelated span, and the rest is "[elsewhere: span ended on another goroutine]": the trace
// does not show when work changes hands through a channel.
//
// Time that no converted trace covers (the budget was spent, or the ring was overwritten before the snapshot) is
// "[not recorded]", so totals hold for these spans too, and [Diagnosis] reports how much was covered.
//
// # Following a wait
//
// Below the state of a wait that another goroutine ended stands a frame that says whose work it was, such as "[held by: POST
// /audit, another request]", then that goroutine's stack and state. The wait is divided by what that goroutine, the waker,
// did in it; where the waker waited itself, its own waker is followed up to there, to a depth of eight, and never to before
// the begin of the wait. Of a time before the waker existed, the one that started it is followed ("[started by: …]"). The
// parts sum to the wait, to the nanosecond. In a convoy, where each holder of a lock waited for the one before, all holders
// stand directly below the wait. What a timer, the network or the garbage collector ended has nothing below it, and what
// cannot be followed has a leaf that says why ("[not followed: forgotten]"); these are counted.
//
// The time in which a goroutine could run and no CPU was free is divided among the goroutines that ran meanwhile, in proportion
// ("[CPUs busy with: POST /report, another request]").
//
// For this, the converter keeps what all goroutines did while some goroutine of a span waits for another one or for
// a CPU: up to 131,072 slices of 80 bytes, the newest of the process, and as many parts of waits of 16 bytes, by
// which a wait is divided that many share, as in a convoy or when one goroutine wakes hundreds: 12 MiB in all, and
// 80 bytes for each slice that ended a wait. It looks at no more than 65,536 slices for one wait, and on average at
// no more than one, or 16 such parts, for each event of the trace; what is beyond is "[not followed: too much]". In
// a busy process, conversion and diagnosis take 1.4 to 1.6 times as long as without following. The trace has but
// numbers of spans: the name of a request that is over and was not slow is known if it is among the 16,384 newest
// spans.
//
// Work that is handed to a goroutine which was there before is covered if the span waits for the answer: the worker's time
// stands below the wait, and so does what the worker was busy with before. If the span does not wait, the worker's time
// is not in its profile.
//
// # Records
//
// A slow root span becomes a record with the series label span_scope="root", its child spans of at least
// Options.ChildMin become records with span_scope="child"; every sample has the label span_id. A child's
// time is also in its root's record: totals of a service are those of span_scope="root". A few root spans that are not
// slow are captured as well, in records with span_scope="fast", so that slow ones can be compared with them.
//
// # Limits (Go 1.26)
//
// One flight recorder can run per process. The trace's clock has a step of 64 ns. A thread that the
// operating system took off the CPU still counts as running. A goroutine that the runtime starts on
// behalf of others (time.AfterFunc, finalizers) belongs to no span. The runtime ends a generation of
// the trace every second and then visits every goroutine, parked or not, which costs about 0.6 µs each.
// That is charged to the budget. Where the numbers of goroutines are not known, as on an architecture or with a version
// of Go that package goid does not know, recording is not armed but paused for part of the time: slow spans in
// that part are counted with those that exceeded the budget. In a recording that began inside a span, a goroutine that the
// span had started before is not known to be the span's, unless a child span began on it.
package wall
