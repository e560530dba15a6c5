package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"

	"wardgate/router/control"
)

// silent is a failure that has been told as an answer: the command ends with this exit code and
// prints nothing more.
type silent int

func (s silent) Error() string { return fmt.Sprintf("exit status %d", int(s)) }

// usageError is a command line that makes no sense.
type usageError struct{ text, hint string }

func (e *usageError) Error() string { return e.text }

func badUsage(hint, format string, args ...any) error {
	return &usageError{fmt.Sprintf(format, args...), hint}
}

// failed describes a failure that happened in the command line itself.
func failed(kind control.Kind, code, title, hint string, err error) error {
	e := &control.Error{Kind: kind, Code: code, Title: title, Hint: hint}
	if err != nil {
		e.Detail = err.Error()
	}
	return e
}

// fileFailed describes a file that cannot be read.
func fileFailed(path string, err error) error {
	hint := "check the name and that you may read it"
	switch {
	case errors.Is(err, fs.ErrNotExist):
		hint = "check the name"
	case errors.Is(err, fs.ErrPermission):
		hint = "use sudo, or a copy that you may read"
	}
	var p *fs.PathError
	if errors.As(err, &p) {
		err = p.Err // the title names the path
	}
	return failed(control.KindInternal, "file", "cannot read "+path, hint, err)
}

// explainFailure gives every error the one form, and its exit code.
func (c *cli) explainFailure(err error) (*control.Error, int) {
	var (
		ce    *control.Error
		usage *usageError
	)
	switch {
	case errors.As(err, &ce):
		return ce, exitOf(ce.Kind)
	case errors.As(err, &usage):
		return &control.Error{Kind: control.KindInvalid, Code: "usage", Title: usage.text, Hint: usage.hint}, exitUsage
	case errors.Is(err, control.ErrUnreachable):
		return &control.Error{
			Kind: control.KindUnavailable, Code: "daemon-unreachable", Title: err.Error(), Hint: unreachableHint(c.socketPath()),
		}, exitUnreachable
	case errors.Is(err, context.DeadlineExceeded):
		return &control.Error{Kind: control.KindTimeout, Code: "timeout", Title: "that took too long", Detail: err.Error(), Hint: "try again; if it stays so, look at: journalctl -u wardgated"}, exitFailure
	}
	if e := tokenFailure(err); e != nil {
		return e, exitOf(e.Kind)
	}
	return &control.Error{Kind: control.KindInternal, Code: "internal", Title: err.Error()}, exitFailure
}

// report tells a failure and returns the exit code.
func (c *cli) report(err error) int {
	var s silent
	if errors.As(err, &s) {
		return int(s)
	}
	e, code := c.explainFailure(err)
	if c.json {
		if werr := c.writeJSON(map[string]*control.Error{"error": e}); werr != nil {
			fmt.Fprintf(c.err, "wardgate: %s\n", plain(werr.Error()))
		}
		return code
	}
	writeFailure(c.err, e)
	return code
}

// writeFailure writes what is wrong in one line and what to do in another. Lists of faults, which
// only policy files have, follow the first line, indented.
func writeFailure(w io.Writer, e *control.Error) {
	title, more, _ := strings.Cut(e.Title, "\n")
	text := plain(lowerFirst(title))
	detail := strings.TrimSpace(more + "\n" + e.Detail)
	head, rest, _ := strings.Cut(detail, "\n")
	if head != "" {
		text += ": " + plain(strings.TrimSpace(head))
	}
	if e.Code != "" && e.Code != "usage" && e.Code != "internal" && e.Code != "file" {
		text += " (" + plain(e.Code) + ")"
	}
	fmt.Fprintf(w, "wardgate: %s\n", text)
	for line := range strings.Lines(rest) {
		if line = strings.TrimSpace(line); line != "" {
			fmt.Fprintf(w, "    %s\n", plain(line))
		}
	}
	if e.Hint != "" {
		fmt.Fprintf(w, "hint: %s\n", plain(e.Hint))
	}
}
