package ikeload

import (
	"context"
	"crypto"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/pprof"
	"time"

	"wardgate/ike"
	"wardgate/internal/memory"
	"wardgate/pkichip"
)

// Status is what a responder says of itself.
type Status struct {
	IKE, Children int
	Resumed       int    // IKE SAs that came up by a ticket
	Heap          uint64 // octets in use after a collection, stacks included
	Refused       string // last refusal
}

// Respond is the responder: it runs until ctx is done. profile, when it is not empty, is the file
// for a profile of its processor time.
func Respond(ctx context.Context, j *Job, profile string) (err error) {
	keys, closeChip, err := j.keys(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeChip()) }()
	conns, err := j.peers(keys)
	if err != nil {
		return err
	}
	var edit func(*ike.Config)
	if len(j.Tickets) > 0 {
		chains, readErr := readChains(j.Chains)
		if readErr != nil {
			return readErr
		}
		defer func() { err = errors.Join(err, chains.write()) }()
		edit = func(c *ike.Config) { c.TicketSecrets, c.Chains = [][]byte{j.Tickets}, chains }
	}
	keep, stopKeep := context.WithCancel(ctx) // as the daemon does
	defer stopKeep()
	go memory.Keep(keep, memory.Router())
	var n Node
	if err := n.Start(j.Local, nil, conns, edit); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.Drop()) }()
	if profile != "" {
		f, err := os.Create(profile)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "unix", j.Status)
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { l.Close() })
	for {
		c, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		err = json.NewEncoder(c).Encode(n.status())
		if err = errors.Join(err, c.Close()); err != nil {
			return err
		}
	}
}

func (n *Node) status() Status {
	debug.FreeOSMemory() // collects, too
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	s := Status{Heap: m.HeapAlloc + m.StackInuse}
	s.Resumed = n.Resumed()
	var last error
	if s.IKE, s.Children, last = n.Counts(); last != nil {
		s.Refused = last.Error()
	}
	return s
}

// Ask asks the responder of a job how it is. That makes it give back what memory it does not need.
func Ask(ctx context.Context, socket string) (Status, error) {
	var s Status
	c, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
	if err != nil {
		return s, err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return s, err
	}
	return s, json.NewDecoder(c).Decode(&s)
}

// keys returns the keys of the rounds, and how to let go of where they are.
func (j *Job) keys(ctx context.Context) ([]crypto.Signer, func() error, error) {
	if j.Chip == nil {
		keys, err := j.signers()
		return keys, func() error { return nil }, err
	}
	chip, err := pkichip.Start(ctx, pkichip.Options{
		Binary: j.Chip.Binary, Module: j.Chip.Module, TokenLabel: j.Chip.Label, PIN: pkichip.PINSource{File: j.Chip.PINFile}, Env: j.Chip.Env,
	})
	if err != nil {
		return nil, nil, err
	}
	var keys []crypto.Signer
	creds, err := chip.Credentials(ctx)
	for i := range j.Rounds {
		layer, service := pkichip.LayerDevice, ""
		if i > 0 {
			layer, service = pkichip.LayerService, j.Chip.Service
		}
		var found *pkichip.Credential
		for k := range creds {
			if c := &creds[k]; c.Layer == layer && c.Service == service && c.Cert != nil && c.Signer != nil {
				found = c
			}
		}
		if err == nil && found == nil {
			err = fmt.Errorf("ikeload: token %q: expected a key with a certificate for round %d, found none among %d", j.Chip.Label, i+1, len(creds))
		}
		if err != nil {
			return nil, nil, errors.Join(err, chip.Close())
		}
		j.Rounds[i].ID, j.Rounds[i].Chain = found.Cert.DNSNames[0], append([][]byte{found.Cert.Raw}, chainDER(found)...)
		keys = append(keys, found.Signer)
	}
	return keys, chip.Close, nil
}

func chainDER(c *pkichip.Credential) [][]byte {
	out := make([][]byte, len(c.Chain))
	for i, x := range c.Chain {
		out[i] = x.Raw
	}
	return out
}
