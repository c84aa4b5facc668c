package wallprofile

import "testing"

func TestWithoutNumbers(t *testing.T) {
	for _, tt := range []struct{ diagnosis, want string }{
		{
			"612 ms GET /a: b: 571 ms (93 %) waiting for a mutex in main.(*Stock).Reserve2",
			"waiting for a mutex in main.(*Stock).Reserve2",
		},
		{
			"900 ms GET /a: b: 90 ms (10 %) on the CPU in main.a.func1",
			"on the CPU in main.a.func1",
		},
		{
			"5 ms GET /a: b: 4 ms (80 %) waiting for a mutex in main.a, held in turn by 47 other requests: 3 ms of it in sql.(*Tx).Commit",
			"waiting for a mutex in main.a: mostly in sql.(*Tx).Commit",
		},
		{
			"5 ms GET /a: b: 4 ms (80 %) waiting for a mutex in main.a, held by: GET /c, another request: 3 ms of it in sql.(*Tx).Commit",
			"waiting for a mutex in main.a: mostly in sql.(*Tx).Commit",
		},
		{
			"5 ms GET /a: b: 4 ms (80 %) waiting in a select in main.a, woken by main.b: 3 ms of it sleeping in main.c",
			"waiting in a select in main.a: mostly sleeping in main.c",
		},
		{
			"5 ms GET /a: b: 4 ms (80 %) waiting for a mutex in main.a, held by main.b",
			"waiting for a mutex in main.a, held by main.b",
		},
		{
			"5 ms GET /a: b: 4 ms (80 %) waiting for a mutex in main.a, held in turn by 3 others",
			"waiting for a mutex in main.a, held in turn by others",
		},
		{
			"5 ms GET /a: b: 4 ms (80 %) waiting for the database's answer in store.load, 512 times",
			"waiting for the database's answer in store.load, times",
		},
		{
			"5 ms GET /a: b: 4 ms (80 %) runnable and waiting for a CPU in main.a (a.go:1), the CPUs busy with GET /c (59 %): 3 ms of it on the CPU in main.c (a.go:2)",
			"runnable and waiting for a CPU in main.a, the CPUs busy: mostly on the CPU in main.c",
		},
		{
			"5 ms GET /a: b: 4 ms (80 %) runnable and waiting for a CPU in main.a, the CPUs busy with others: 3 ms of it on the CPU in main.c",
			"runnable and waiting for a CPU in main.a, the CPUs busy: mostly on the CPU in main.c",
		},
		{
			"5 ms GET /a: b: 4 ms (80 %) waiting for the answer of an HTTP call in main.a (a.go:1), in the HTTP call POST 127.0.0.1:8081",
			"waiting for the answer of an HTTP call in main.a, in the HTTP call POST 127.0.0.1:8081",
		},
		{
			"5 ms another span: 4 ms (80 %) not recorded",
			"another span: not recorded",
		},
		{
			"",
			"",
		},
	} {
		if got := WithoutNumbers(tt.diagnosis, "GET /a: b"); got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.diagnosis, got, tt.want)
		}
	}
}

// TestCausesGroupAsTheyAreWritten: the diagnoses that are written today differ in their causes alone, not in who was waited for.
func TestCausesGroupAsTheyAreWritten(t *testing.T) {
	mutex := Place{Function: "shop/main.reserve", Leaf: WaitMutex.Leaf()}
	of := func(who string) string {
		cause := Cause{Who: who, Most: Place{Function: "main.commit", Leaf: Syscall.Leaf()}, Took: 7}
		return WithoutNumbers(Diagnosis("GET /", 100e6, mutex, 90e6, "", cause), "GET /")
	}
	want := "waiting for a mutex in main.reserve: mostly in main.commit"
	for _, who := range []string{
		"", "held by main.commit", Caused(HeldBy, "GET /", 1, true, ""), Caused(HeldBy, "", 12, true, "main.settle"), Caused(HeldBy, "", 12, false, ""),
	} {
		if got := of(who); got != want {
			t.Errorf("%q: got %q, want %q", who, got, want)
		}
	}
}
