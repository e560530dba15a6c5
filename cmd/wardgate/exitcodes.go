package main

import "wardgate/router/control"

// Exit codes: the same for every command, and documented in docs/cli.md.
const (
	exitOK          = 0 // done; the answer is yes
	exitFailure     = 1 // something failed
	exitUsage       = 2 // the command line makes no sense
	exitRefused     = 3 // understood, and refused or denied; the answer is no
	exitUnreachable = 4 // the daemon cannot be reached
	exitToken       = 5 // the token is missing, or cannot do it
)

// exitOf maps a kind of failure to the exit code.
func exitOf(k control.Kind) int {
	switch k {
	case control.KindInvalid:
		return exitUsage
	case control.KindDenied, control.KindRefused:
		return exitRefused
	case control.KindToken:
		return exitToken
	case control.KindNotFound, control.KindTooLarge, control.KindInternal, control.KindUnavailable, control.KindTimeout:
	}
	return exitFailure
}
