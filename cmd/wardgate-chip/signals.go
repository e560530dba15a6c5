package main

import (
	"os/signal"
	"syscall"
)

// ignoreSignals leaves Ctrl-C and the like to the client, so that it can end this process in
// order (and no token is left logged in half-way through a write).
func ignoreSignals() { signal.Ignore(syscall.SIGINT, syscall.SIGHUP, syscall.SIGPIPE) }
