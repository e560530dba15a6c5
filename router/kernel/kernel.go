package kernel

import (
	"context"
	"errors"
)

// Controller is what the router needs of this package; *Kernel implements it.
type Controller interface {
	Apply(State) error
	Lockdown() error
	Remove() error
	Counters() (map[Reason]Counter, error)
	Watch(ctx context.Context, report func(Event)) error
	Refusals(ctx context.Context, report func(Refusal)) error
}

// Options say where and under which names. The zero value is the daemon's own network namespace
// and the Default… names.
type Options struct {
	NetNS         int    // file descriptor of a network namespace; 0: the calling thread's
	TunName       string // for a Lockdown before any Apply; default DefaultTunName
	TableName     string // nftables table
	RouteTable    int
	RulePriority  int
	RouteProtocol int
	Mark          uint32
	LogGroup      uint16
	// Log is told what was changed or could not be, as message and key-value pairs; nil: nobody.
	Log func(msg string, keysAndValues ...any)

	noForce6 bool // tests: as on Linux before 6.17
}

// ErrClosed is returned after Close.
var ErrClosed = errors.New("kernel: closed")
