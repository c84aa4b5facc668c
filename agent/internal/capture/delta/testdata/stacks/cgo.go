//go:build cgo

package main

/*
extern void goCallback(void);
static void viaC(void) { goCallback(); }
*/
import "C"

// callback is what goCallback calls.
var callback func()

//export goCallback
func goCallback() { callback() }

// alsoWanted are functions that stacks have in this build.
var alsoWanted = []string{"main.viaCAndBack"}

var one = make(chan struct{}, 1)

//go:noinline
func viaCAndBack(f func()) {
	one <- struct{}{}
	callback = func() { <-one; inlined(f) }
	C.viaC()
}

func init() { ways["main.goCallback"] = viaCAndBack }
