// Command wardgate is the operator's command line: it asks wardgated over its control socket what
// it does and tells it what to do, checks policy files and audit records, and looks after the
// token.
//
// Its rules: answers go to standard output, complaints to standard error. A complaint is one line
// that says what is wrong and one that says what to do about it. With --json both are JSON on
// standard output. The exit status (exitcodes.go) means the same for every command. Text that
// somebody else chose (a peer's identity, a name in a file) never reaches the terminal
// unescaped. docs/cli.md describes every command.
package main

import (
	"os"
	"time"

	"golang.org/x/term"
)

// version is set by the linker (-X main.version=…); otherwise the build information tells.
var version string

func main() {
	c := &cli{
		in: os.Stdin, out: os.Stdout, err: os.Stderr,
		now: time.Now, dial: dial, getenv: os.Getenv,
		terminal: term.IsTerminal(int(os.Stdout.Fd())),
	}
	os.Exit(c.run(os.Args[1:]))
}
