package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"wardgate/router/control"
)

// What the daemon was told of a change on the token, in JSON.
const (
	daemonReloaded   = "reloaded"
	daemonNotRunning = "not-running"
	daemonNotTold    = "not-told"
)

// told is what the daemon knows of a change that was made on the token beside it.
type told struct {
	Daemon  string // one of the daemon… constants
	Trouble string
}

// neighbour returns the daemon of this machine, if it runs, to be told of changes on the token.
func (c *cli) neighbour() *control.Client { return control.NewClient(c.socketPath()) }

// reload makes the daemon read the token again. That it does not run is no failure: it reads the
// token when it starts. Neither is any other: the token has been changed all the same.
func (c *cli) reload(ctx context.Context) told {
	ctx, cancel := context.WithTimeout(ctx, requestTime)
	defer cancel()
	err := c.neighbour().Reload(ctx)
	switch {
	case err == nil:
		return told{Daemon: daemonReloaded}
	case errors.Is(err, control.ErrUnreachable) && !errors.Is(unix.Access(c.socketPath(), unix.W_OK), fs.ErrPermission):
		return told{Daemon: daemonNotRunning}
	}
	return told{Daemon: daemonNotTold, Trouble: err.Error()}
}

// write says what follows for the daemon, if anything does.
func (t told) write(p *printer) {
	switch t.Daemon {
	case daemonReloaded:
		p.line("The daemon has read the token again.")
	case daemonNotTold:
		p.line("%s", p.style(yellow, "The daemon could not be told: "+plain(t.Trouble)))
		p.line("Tell it: systemctl reload wardgated")
	}
}

// dependents are the connections of a service, as the daemon knows them; known is false when it
// cannot be asked.
func (c *cli) dependents(ctx context.Context, service string) (names []string, known bool) {
	ctx, cancel := context.WithTimeout(ctx, requestTime)
	defer cancel()
	all, err := c.neighbour().Connections(ctx)
	if err != nil {
		return nil, false
	}
	names = []string{}
	for _, x := range all {
		if x.Service == service {
			names = append(names, x.Name)
		}
	}
	return names, true
}

// dependentsText is a sentence about the connections of a service.
func dependentsText(names []string, known bool) string {
	switch {
	case !known:
		return "The daemon cannot be asked which connections depend on it."
	case len(names) == 0:
		return "No connection depends on it."
	}
	return "Connections that depend on it: " + plainAll(names, ", ") + "."
}

// confirm asks a person at the terminal. Without one --yes is needed.
func confirm(c *cli, question string) error {
	in, ok := c.in.(*os.File)
	if !ok || !term.IsTerminal(int(in.Fd())) {
		return failed(control.KindRefused, "not-confirmed", "this has to be confirmed", "add --yes if you are sure", errors.New(question))
	}
	fmt.Fprintf(c.err, "%s [y/N] ", question)
	answer, err := bufio.NewReader(io.LimitReader(c.in, 1024)).ReadString('\n')
	if err != nil && answer == "" {
		return failed(control.KindRefused, "not-confirmed", "there was no answer", "answer y, or add --yes", err)
	}
	if a := strings.ToLower(strings.TrimSpace(answer)); a != "y" && a != "yes" {
		return failed(control.KindRefused, "not-confirmed", "nothing was changed", "answer y, or add --yes", nil)
	}
	return nil
}
