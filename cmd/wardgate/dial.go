package main

import (
	"context"
	"errors"
	"io/fs"

	"golang.org/x/sys/unix"

	"wardgate/router/control"
)

// daemon is what the commands ask of wardgated. The errors of its methods are *control.Error, or
// wrap control.ErrUnreachable.
type daemon interface {
	Status(ctx context.Context) (*control.Status, error)
	Connections(ctx context.Context) ([]control.Connection, error)
	Up(ctx context.Context, name string) (*control.Connection, error)
	Down(ctx context.Context, name string) (*control.Connection, error)
	Explain(ctx context.Context, flow control.Flow) (*control.Explanation, error)
	PolicyCheck(ctx context.Context, jws []byte) (*control.PolicyReport, error)
	PolicyInstall(ctx context.Context, jws []byte) (*control.PolicyReport, error)
	AuditTail(ctx context.Context, n int) ([]control.AuditRecord, error)
	Counters(ctx context.Context) (*control.Counters, error)
	Redirect(ctx context.Context, req control.RedirectRequest) (*control.RedirectReport, error)
	PPKs(ctx context.Context) ([]control.PPK, error)
	PPKAdd(ctx context.Context, id string, secret []byte, replace bool) (*control.PPK, error)
	PPKRemove(ctx context.Context, id string) (*control.PPK, error)
	Join(ctx context.Context, req control.JoinRequest, step func(control.JoinStep)) error
}

// dial returns the daemon at a socket.
func dial(socket string) (daemon, error) { return control.NewClient(socket), nil }

// unreachableHint says what to do when nobody answers at the socket.
func unreachableHint(socket string) string {
	// The client's error does not carry the cause; who may not write to the socket may not use it.
	if errors.Is(unix.Access(socket, unix.W_OK), fs.ErrPermission) {
		return "use sudo, or have the administrator add you to the group of [control] group"
	}
	return "start the daemon with: systemctl start wardgated; why it ended says: journalctl -u wardgated"
}
