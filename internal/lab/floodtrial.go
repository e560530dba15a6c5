package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// FloodTrial is how an honest peer fares while a router is flooded with IKE_SA_INIT requests.
type FloodTrial struct {
	Rate   float64       // spoofed requests per second
	For    time.Duration // of the flood
	Honest int           // connections that come up on demand: so many in quiet, so many under the flood
	Return bool          // the attackers return the cookies that are asked for, and solve no puzzles
	Pin    bool          // the router on the last processor alone, everybody else on the first
}

// FloodReport is what came of it.
type FloodReport struct {
	Sent         uint64 // spoofed requests
	Returned     uint64 // of them again with their cookies
	Took         time.Duration
	Quiet, Under Honest
	RSS          [3]int64          // resident octets of the router: before, the most of during, after
	CPU          time.Duration     // of the router, during the flood
	Levels       [3]time.Duration  // how long the router's defence was at each level (RFC 8019): none, cookie, puzzle
	Difficulty   uint64            // zero bits, the most that its puzzles asked for
	HalfOpen     uint64            // IKE SAs, the most
	Answers      map[string]uint64 // what became of requests, as control.Counters names it
	NoRoom       uint64            // datagrams that the router's sockets had no room for: it was not given its processor in time
}

// Honest is how connections came up, one after the other.
type Honest struct {
	Tried, Up int
	Times     []time.Duration // from the first packet sent until it came through, sorted
}

// Median is the median of Times; 0 without any.
func (h Honest) Median() time.Duration {
	if len(h.Times) == 0 {
		return 0
	}
	return h.Times[len(h.Times)/2]
}

// floodSources are addresses that nobody has.
var floodSources = netip.MustParsePrefix("100.64.0.0/10")

// honestLimit is how long a connection may take to come up.
const honestLimit = 5 * time.Second

// Flooded runs a trial: router A has on-demand connections to router B, which is the one that is
// flooded. The attacker sits on the network between them.
func (l *Lab) Flooded(ctx context.Context, t FloodTrial) (r *FloodReport, err error) {
	w, err := l.newPairWardgate(ctx)
	if err != nil {
		return nil, err
	}
	p, err := l.Pair()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, p.Close()) }()
	victimCPU := runtime.NumCPU() - 1
	if t.Pin && victimCPU > 0 {
		for _, f := range w.sides {
			f.Environ = append(f.Environ, "GOMAXPROCS=1")
		}
	}
	// Answers to addresses that nobody has go the same way as all others.
	if err := p.B.IP("route", "add", floodSources.String(), "via", pairWAN[0].String()); err != nil {
		return nil, err
	}
	up, err := w.scale(ctx, p, "", "aes128gcm16", Scale{Tunnels: 2*t.Honest + 1})
	if err != nil {
		return nil, withTails(err, p)
	}
	if t.Pin && victimCPU > 0 {
		if err := errors.Join(pin(w.sides[1].Daemon.PID, victimCPU), pin(w.sides[0].Daemon.PID, 0)); err != nil {
			return nil, err
		}
	}
	sink, err := p.HostB.Sink(SinkPort)
	if err != nil {
		return nil, err
	}
	defer sink.Close()
	// One goes first: everybody has met everybody then.
	if err := p.HostA.Wake(ctx, sink, up.Sources[:1], up.Targets[:1], 20*time.Second); err != nil {
		return nil, withTails(err, p)
	}
	up.Sources, up.Targets = up.Sources[1:], up.Targets[1:]
	r = &FloodReport{}
	pause := time.Duration(0)
	if r.Quiet, err = p.honest(ctx, sink, up.Sources[:t.Honest], up.Targets[:t.Honest], pause); err != nil {
		return nil, withTails(err, p)
	}
	victim := w.sides[1].Daemon
	if r.RSS[0], err = victim.RSS(); err != nil {
		return nil, err
	}

	full0, err := p.B.noRoom()
	if err != nil {
		return nil, err
	}
	attack, stop := context.WithCancel(ctx)
	defer stop()
	attacked := make(chan error, 1)
	begin := time.Now()
	cpu0, err := CPUTime(victim.PID)
	if err != nil {
		return nil, err
	}
	cpu := -1
	if t.Pin {
		cpu = 0
	}
	s := Spoof{Dev: WANDev, To: pairWAN[1], Sources: floodSources, Rate: t.Rate, CPU: cpu}
	returned := make(chan error, 1)
	if t.Return {
		go func() {
			var err error
			r.Returned, err = p.A.ReturnCookies(attack, s)
			returned <- err
		}()
	} else {
		returned <- nil
	}
	go func() {
		var err error
		r.Sent, err = p.A.Spoof(attack, s)
		r.Took = time.Since(begin)
		attacked <- err
	}()
	most, watched := make(chan int64, 1), make(chan struct{})
	go func() { most <- watchRSS(attack, victim) }()
	go func() {
		defer close(watched)
		r.watchDefence(attack, w.sides[1])
	}()
	// The half-open table fills first; then the honest ones come, spread over the flood.
	select {
	case <-time.After(t.For / 10):
	case <-ctx.Done():
	}
	pause = t.For * 8 / 10 / time.Duration(t.Honest)
	r.Under, err = p.honest(ctx, sink, up.Sources[t.Honest:], up.Targets[t.Honest:], pause)
	if left := t.For - time.Since(begin); err == nil && left > 0 {
		select {
		case <-time.After(left):
		case <-ctx.Done():
		}
	}
	cpu1, cpuErr := CPUTime(victim.PID)
	r.CPU = cpu1 - cpu0
	stop()
	err = errors.Join(err, <-attacked, <-returned, cpuErr)
	<-watched
	r.RSS[1] = <-most
	if err == nil {
		r.RSS[2], err = victim.RSS()
	}
	full1, fullErr := p.B.noRoom()
	r.NoRoom, err = full1-full0, errors.Join(err, fullErr)
	if err != nil {
		return nil, withTails(err, p)
	}
	return r, nil
}

// honest wakes one connection after the other, a new one every pause at the earliest.
func (p *Pair) honest(ctx context.Context, sink *Sink, sources, targets []netip.Addr, pause time.Duration) (Honest, error) {
	var h Honest
	fd, err := p.HostA.udpSocket(0)
	if err != nil {
		return h, err
	}
	defer unix.Close(fd)
	for i := range sources {
		begin := time.Now()
		f := Flood{Sizes: []int{64}, Sources: sources[i : i+1], Targets: targets[i : i+1], Burst: 1, Packets: 1, For: time.Second}
		if _, err := newGenerator(fd, sink.begin(), sink.to.Port(), f).send(ctx, begin); err != nil {
			return h, err
		}
		h.Tried++
		sink.settle(ctx, func() bool { return sink.count() > 0 }, honestLimit)
		sink.mu.Lock()
		if sink.n > 0 {
			h.Up++
			h.Times = append(h.Times, sink.first.Sub(begin))
		}
		sink.mu.Unlock()
		select {
		case <-time.After(pause - time.Since(begin)):
		case <-ctx.Done():
			return h, ctx.Err()
		}
	}
	slices.Sort(h.Times)
	return h, nil
}

// pin ties all threads of a process, and those that it will make, to one processor.
func pin(pid, cpu int) error {
	var set unix.CPUSet
	set.Set(cpu)
	for range 3 { // threads may be made meanwhile
		tasks, err := os.ReadDir(filepath.Join("/proc", strconv.Itoa(pid), "task"))
		if err != nil {
			return err
		}
		for _, t := range tasks {
			tid, err := strconv.Atoi(t.Name())
			if err != nil {
				continue
			}
			if err := unix.SchedSetaffinity(tid, &set); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("thread %d of process %d to processor %d: %w", tid, pid, cpu, err)
			}
		}
	}
	return nil
}

// watchDefence notes how the router meets strangers until ctx is done.
func (r *FloodReport) watchDefence(ctx context.Context, f *Facility) {
	const pause = 500 * time.Millisecond
	for tick := time.NewTicker(pause); ; {
		if c, err := f.Control().Counters(ctx); err == nil {
			r.Answers = c.Other
			r.Levels[min(c.Other["ike_defence_level"], uint64(len(r.Levels)-1))] += pause
			r.Difficulty = max(r.Difficulty, c.Other["ike_defence_difficulty"])
			r.HalfOpen = max(r.HalfOpen, c.Other["ike_defence_half_open"])
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			tick.Stop()
			return
		}
	}
}

// watchRSS returns the most that a process had resident until ctx was done.
func watchRSS(ctx context.Context, p *Process) (most int64) {
	for tick := time.NewTicker(200 * time.Millisecond); ; {
		if n, err := p.RSS(); err == nil {
			most = max(most, n)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			tick.Stop()
			return most
		}
	}
}

// noRoom counts the UDP datagrams that the namespace's sockets had no room for.
func (n *Netns) noRoom() (count uint64, err error) {
	return count, n.Do(func() error {
		var names []string
		for _, line := range readLines("/proc/thread-self/net/snmp") {
			f := strings.Fields(line)
			switch {
			case len(f) == 0 || f[0] != "Udp:":
			case names == nil:
				names = f
			default:
				i := slices.Index(names, "RcvbufErrors")
				if i < 0 || i >= len(f) {
					return errors.New("lab: no RcvbufErrors in /proc/net/snmp")
				}
				count, err = strconv.ParseUint(f[i], 10, 64)
				return err
			}
		}
		return errors.New("lab: no UDP counters in /proc/net/snmp")
	})
}

// neighbour finds the hardware address of an IPv4 neighbour that this thread's namespace has spoken
// to.
func neighbour(a netip.Addr) (net []byte, err error) {
	for _, line := range readLines("/proc/thread-self/net/arp") {
		f := strings.Fields(line)
		if len(f) < 4 || f[0] != a.String() {
			continue
		}
		mac := make([]byte, 6)
		if _, err := fmt.Sscanf(strings.ReplaceAll(f[3], ":", " "), "%x %x %x %x %x %x", &mac[0], &mac[1], &mac[2], &mac[3], &mac[4], &mac[5]); err != nil {
			return nil, fmt.Errorf("neighbour %v: %w", a, err)
		}
		return mac, nil
	}
	return nil, fmt.Errorf("lab: %v is no neighbour yet: send it something first", a)
}

func withTails(err error, p *Pair) error {
	for _, d := range p.Daemons {
		err = fmt.Errorf("%w\n%s: %s", err, d.Name, d.Tail(5))
	}
	return err
}
