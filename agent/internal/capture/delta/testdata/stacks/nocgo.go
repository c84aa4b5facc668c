//go:build !cgo

package main

var alsoWanted []string
