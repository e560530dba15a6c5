package lab

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"time"

	"wardgate/policy"
)

// Scale is a policy of many connections, or of one connection with many rules.
type Scale struct {
	Tunnels int // connections between the two routers, each for a pair of addresses
	Rules   int // pairs of addresses that the only connection allows; 0: Tunnels counts
}

// Scaled is what stands after [Subject].Scale.
type Scaled struct {
	// Sources (behind host A) and Targets (behind host B) are pairs that may talk: one of each
	// tunnel, or of each rule. The first pair may talk over TCP too.
	Sources, Targets []netip.Addr
	Install          time.Duration // to verify, compile and put into force the policy, on the slower side
	Flows            int           // flows that the policy is written with; each has Rules/Flows pairs
}

// scaleAddr is the i-th address behind a side, leaving out .0 and .255 for the eye's sake.
func scaleAddr(side, i int) netip.Addr {
	a := pairMany[side].Addr().As4()
	binary.BigEndian.PutUint16(a[2:], uint16(i/254<<8|i%254+1))
	return netip.AddrFrom4(a)
}

// maxScale is how many addresses there are behind a side.
const maxScale = 256 * 254

// rulesPerTarget is how many rules share a target in a policy of many rules.
const rulesPerTarget = 1000

// pairs lists the addresses of a scale.
func (s Scale) pairs() (sources, targets []netip.Addr, err error) {
	switch {
	case s.Rules == 0 && (s.Tunnels < 1 || s.Tunnels > maxScale), s.Rules < 0 || s.Rules > maxScale*rulesPerTarget:
		return nil, nil, fmt.Errorf("lab: %d tunnels, %d rules: want 1 to %d tunnels, or 1 to %d rules", s.Tunnels, s.Rules, maxScale, maxScale*rulesPerTarget)
	case s.Rules == 0:
		for i := range s.Tunnels {
			sources, targets = append(sources, scaleAddr(0, i)), append(targets, scaleAddr(1, i))
		}
	default:
		for i := range s.Rules {
			sources, targets = append(sources, scaleAddr(0, i%rulesPerTarget)), append(targets, scaleAddr(1, i/rulesPerTarget))
		}
	}
	return sources, targets, nil
}

// connections writes the connections of a scale as seen from one side; per is how many sources one
// flow names.
func (s Scale) connections(side, per int) ([]policy.Connection, error) {
	sources, targets, err := s.pairs()
	if err != nil {
		return nil, err
	}
	dir := policy.DirectionOut
	if side == 1 {
		dir = policy.DirectionIn
	}
	if s.Rules == 0 {
		var out []policy.Connection
		for i := range sources {
			out = append(out, policy.Connection{
				Name: "t" + strconv.Itoa(i), Peer: "peer", Service: GroupA, Start: policy.StartOnDemand,
				Flows: []policy.FlowRule{{Name: "all", From: []string{sources[i].String()}, To: []string{targets[i].String()}, Protocol: "any", Direction: dir}},
			})
		}
		return out, nil
	}
	c := policy.Connection{
		Name: "rules", Peer: "peer", Service: GroupA, Start: policy.StartOnDemand,
		Local: []string{pairMany[side].String()}, Remote: []string{pairMany[1-side].String()},
	}
	for i := 0; i < len(sources); i += per {
		f := policy.FlowRule{Name: "r" + strconv.Itoa(i), To: []string{targets[i].String()}, Protocol: "udp", Ports: []string{strconv.Itoa(SinkPort)}, Direction: dir}
		if i == 0 {
			f.Protocol, f.Ports = "any", nil
		}
		for _, a := range sources[i:min(i+per, len(sources))] {
			f.From = append(f.From, a.String())
		}
		c.Flows = append(c.Flows, f)
	}
	return []policy.Connection{c}, nil
}

// scale starts both Wardgates with a policy of many connections or rules.
func (w *pairWardgate) scale(ctx context.Context, p *Pair, binary, esp string, s Scale) (*Scaled, error) {
	r := &Scaled{}
	var err error
	if r.Sources, r.Targets, err = s.pairs(); err != nil {
		return nil, err
	}
	if err := w.start(ctx, p, binary); err != nil {
		return nil, err
	}
	files, flows, err := w.scalePolicies(esp, s)
	if err != nil {
		return nil, err
	}
	r.Flows = flows
	start := time.Now()
	err = each(w.sides[:], func(f *Facility) error {
		file := files[0]
		if f == w.sides[1] {
			file = files[1]
		}
		_, err := f.Control().PolicyInstall(ctx, file)
		return err
	})
	r.Install = time.Since(start)
	return r, err
}

// scalePolicies writes and signs the policies of both sides; flows is how many flows each has. The
// routers authenticate by a pre-shared key: the signatures of two tokens would be what is measured.
func (w *pairWardgate) scalePolicies(esp string, s Scale) (files [2][]byte, flows int, err error) {
	key := make([]byte, 32)
	if _, err := rand.Read(key); err != nil {
		return files, 0, err
	}
	// A policy file has a largest size; with several addresses in each flow more fits.
	for _, per := range []int{1, 10, 100} {
		for i, f := range w.sides {
			var d *policy.Document
			if d, err = w.provider.Policy(f, []*Contract{w.contract}); err != nil {
				return files, 0, err
			}
			d.Suites.ESP = []string{esp}
			d.Zones[0].Level = policy.LevelDMZ // lets a flow name no protocol: one for each tunnel is enough
			d.Zones[0].Prefixes = append(d.Zones[0].Prefixes, pairMany[i].String())
			d.Peers[0].Name = "peer"
			d.Services = []policy.Service{{Name: GroupA, Category: policy.CategoryInformation, Auth: policy.AuthPSK, PSK: policy.NewSecret(key)}}
			d.Tests = nil
			if d.Connections, err = s.connections(i, per); err != nil {
				return files, 0, err
			}
			flows = 0
			for _, c := range d.Connections {
				flows += len(c.Flows)
			}
			if files[i], err = w.provider.Sign(d); err != nil {
				break
			}
		}
		if s.Rules == 0 || !errors.Is(err, policy.ErrTooLarge) {
			break
		}
	}
	return files, flows, err
}

// Wake sends a packet for each pair of addresses, so that the tunnels come up on demand, and waits
// until the sink has one of every pair. It goes on in steps of a few pairs, each as soon as the one
// before has come through, and gives up when one does not within a limit.
func (h *Host) Wake(ctx context.Context, to *Sink, sources, targets []netip.Addr, limit time.Duration) error {
	const step = floodBatch
	for at := 0; at < len(sources); at += step {
		end := min(at+step, len(sources))
		f := Flood{Sizes: []int{64}, Packets: uint64(end - at), For: limit, Sources: sources[at:end], Targets: targets[at:end], Burst: 1}
		// The packet that wakes a tunnel may be lost (a cookie is asked for, a queue is full):
		// then the next one finds the tunnel standing.
		for deadline := time.Now().Add(limit); ; {
			got, err := h.flood(ctx, to, f, func() bool { return to.count() == f.Packets }, 2*time.Second)
			if err != nil {
				return err
			}
			if got.Received >= f.Packets {
				break
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("lab: pairs %d to %d: %d of %d packets came through within %v: the tunnels do not stand", at, end-1, got.Received, f.Packets, limit)
			}
		}
	}
	return nil
}
