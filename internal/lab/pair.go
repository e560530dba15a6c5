package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// The benchmarks' addresses. Behind each host lie as many more addresses as the tests with many
// tunnels need: the host answers for all of them (an "any IP" route), and the router reaches them
// through the host, so that its neighbour table stays short.
var (
	pairLAN   = [2]netip.Prefix{netip.MustParsePrefix("10.1.1.1/24"), netip.MustParsePrefix("10.2.1.1/24")}
	pairHosts = [2]netip.Addr{netip.MustParseAddr("10.1.1.10"), netip.MustParseAddr("10.2.1.10")}
	pairMany  = [2]netip.Prefix{netip.MustParsePrefix("10.129.0.0/16"), netip.MustParsePrefix("10.130.0.0/16")}
	pairWAN   = [2]netip.Addr{netip.MustParseAddr("198.18.0.1"), netip.MustParseAddr("198.18.0.2")}
)

const (
	pairLANDev = "sz0"
	// PairMTU is the largest packet between the hosts of a [Pair], in octets: that of the
	// hosts' LANs. It is the same for every tunnel because strongSwan's kernel-libipsec reads
	// its TUN device with a buffer of that size.
	PairMTU = 1400
)

// Pair is what every benchmark runs on:
//
//	host A ── router A ── 198.18.0.0/24, MTU 1500 ── router B ── host B
//
// four namespaces joined by three veth pairs. The hosts stand behind the routers because a
// hospital uses them so, and because a Wardgate sends nothing of its own into a tunnel.
type Pair struct {
	HostA, HostB *Host
	A, B         *Netns     // the routers
	Daemons      []*Process // those of the tunnel: whoever brings one up appends to it

	lab *Lab
	at  mark
}

// Pair makes the networks of one measurement. Close removes them and all that was started since.
func (l *Lab) Pair() (p *Pair, err error) {
	p = &Pair{lab: l, at: l.mark()}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.Close())
		}
	}()
	routers, hosts := [2]*Netns{}, [2]*Host{}
	for i, side := range []string{"a", "b"} {
		if routers[i], err = l.Netns(side); err != nil {
			return nil, err
		}
		n, err := l.Netns(side + "-host")
		if err != nil {
			return nil, err
		}
		lan := pairLAN[i]
		hosts[i] = &Host{Netns: n, Addr: pairHosts[i], Zone: &Zone{
			Name: "sz", Level: "SZ", Dev: pairLANDev, Gateway: lan.Addr(), Prefix: lan.Masked(),
		}}
		if err := errors.Join(
			Cable(routers[i], pairLANDev, n, "eth0"),
			routers[i].Addr(pairLANDev, lan.String()),
			n.Addr("eth0", netip.PrefixFrom(hosts[i].Addr, lan.Bits()).String()),
			n.IP("link", "set", "eth0", "mtu", strconv.Itoa(PairMTU)),
			routers[i].IP("link", "set", pairLANDev, "mtu", strconv.Itoa(PairMTU)),
			n.IP("route", "add", "default", "via", lan.Addr().String()),
			n.IP("route", "add", "local", pairMany[i].String(), "dev", "lo"),
			routers[i].IP("route", "add", pairMany[i].String(), "via", hosts[i].Addr.String()),
		); err != nil {
			return nil, err
		}
	}
	p.A, p.B, p.HostA, p.HostB = routers[0], routers[1], hosts[0], hosts[1]
	return p, errors.Join(
		Cable(p.A, WANDev, p.B, WANDev),
		p.A.Addr(WANDev, netip.PrefixFrom(pairWAN[0], 24).String()),
		p.B.Addr(WANDev, netip.PrefixFrom(pairWAN[1], 24).String()),
	)
}

// Close ends what was started since the pair was made, and removes its namespaces.
func (p *Pair) Close() error { return p.lab.closeSince(p.at) }

// routers are the routers of both sides, A first.
func (p *Pair) routers() [2]*Netns { return [2]*Netns{p.A, p.B} }

// hosts are the hosts of both sides, A first.
func (p *Pair) hosts() [2]*Host { return [2]*Host{p.HostA, p.HostB} }

// Forward makes plain routers of A and B, as every subject but Wardgate needs them; with dev, what
// is for the other side's host is routed into that device.
func (p *Pair) Forward(dev string) error {
	for i, n := range p.routers() {
		if err := n.Sysctl("net.ipv4.ip_forward=1"); err != nil {
			return err
		}
		if dev == "" {
			continue
		}
		if err := n.IP("route", "add", p.hosts()[1-i].Zone.Prefix.String(), "dev", dev); err != nil {
			return err
		}
	}
	return nil
}

// Ping waits until host A gets an answer from host B: to a short packet, then to one that fills
// the MTU and may not be fragmented.
func (p *Pair) Ping(ctx context.Context, limit time.Duration) error {
	for _, size := range []int{56, PairMTU - 28} {
		if err := WaitFor(ctx, fmt.Sprintf("host B to answer a ping of %d octets from host A", size+28), limit, func() error {
			for _, d := range p.Daemons {
				if err := d.Running(); err != nil {
					return err
				}
			}
			_, err := p.HostA.Run(ctx, "ping", "-q", "-n", "-c", "1", "-W", "1", "-M", "do", "-s", strconv.Itoa(size), p.HostB.Addr.String())
			return err
		}); err != nil {
			return err
		}
	}
	return nil
}

// Offload switches features of a device by their names in ethtool(8), on or off.
func (n *Netns) Offload(ctx context.Context, dev string, on bool, features ...string) error {
	args := []string{"-K", dev}
	for _, f := range features {
		args = append(args, f, map[bool]string{true: "on", false: "off"}[on])
	}
	_, err := n.Run(ctx, "ethtool", args...)
	return err
}

// CPU returns the processor time that the process has used, with all its threads.
func (p *Process) CPU() (time.Duration, error) {
	name := filepath.Join("/proc", strconv.Itoa(p.PID), "stat")
	text, err := os.ReadFile(name)
	if err != nil {
		return 0, err
	}
	return cpuTime(string(text))
}

// CPUTime is CPU to the nanosecond: what the kernel keeps for a process's clock.
func CPUTime(pid int) (time.Duration, error) {
	var ts unix.Timespec
	// The clock of a process is its PID's complement, three bits of kind below (clock_getcpuclockid):
	// CPUCLOCK_SCHED of the whole process is 2.
	if err := unix.ClockGettime(int32(^pid<<3|2), &ts); err != nil {
		return 0, fmt.Errorf("processor time of process %d: %w", pid, err)
	}
	return time.Duration(ts.Nano()), nil
}

// clockTick is the unit of the times in /proc: USER_HZ, which is 100 on every architecture of Linux
// that Go knows.
const clockTick = time.Second / 100

// cpuTime adds fields 14 and 15 (utime, stime) of /proc/PID/stat.
func cpuTime(stat string) (time.Duration, error) {
	f := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	if len(f) < 13 {
		return 0, fmt.Errorf("/proc/PID/stat: want at least 15 fields, came %q", stat)
	}
	var ticks uint64
	for _, s := range f[11:13] {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("/proc/PID/stat: %w", err)
		}
		ticks += n
	}
	return time.Duration(ticks) * clockTick, nil
}

// BusyCPU returns the time that all processors of the machine together have not been idle.
func BusyCPU() (time.Duration, error) {
	lines := readLines("/proc/stat")
	if len(lines) == 0 {
		return 0, errors.New("/proc/stat cannot be read")
	}
	return busyTime(lines[0])
}

// busyTime adds user, nice, system, irq and softirq of the first line of /proc/stat.
func busyTime(line string) (time.Duration, error) {
	f := strings.Fields(line)
	if len(f) < 8 || f[0] != "cpu" {
		return 0, fmt.Errorf("/proc/stat: want \"cpu\" and seven times, came %q", line)
	}
	var ticks uint64
	for _, i := range []int{1, 2, 3, 6, 7} {
		n, err := strconv.ParseUint(f[i], 10, 64)
		if err != nil {
			return 0, fmt.Errorf("/proc/stat: %w", err)
		}
		ticks += n
	}
	return time.Duration(ticks) * clockTick, nil
}

// mark is a moment in a lab's life: what was started later can be undone alone.
type mark struct{ procs, spaces int }

func (l *Lab) mark() mark {
	l.mu.Lock()
	defer l.mu.Unlock()
	return mark{len(l.procs), len(l.spaces)}
}

// closeSince ends the processes started and removes the namespaces made since a mark.
func (l *Lab) closeSince(m mark) error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	procs, spaces := l.procs[m.procs:], l.spaces[m.spaces:]
	l.procs, l.spaces = l.procs[:m.procs:m.procs], l.spaces[:m.spaces:m.spaces]
	l.mu.Unlock()
	return stopAll(procs, spaces, 10*time.Second) // thousands of tunnels take a while to say goodbye
}

// stopAll ends processes (TERM, a short grace, KILL) and removes namespaces.
func stopAll(procs []*Process, spaces []*Netns, grace time.Duration) error {
	// Newest first: clients before the daemons that they talk to. All get their TERM at once.
	for i := len(procs) - 1; i >= 0; i-- {
		procs[i].signal(unix.SIGTERM)
	}
	var errs []error
	for i := len(procs) - 1; i >= 0; i-- {
		errs = append(errs, procs[i].Stop(grace))
	}
	for i := len(spaces) - 1; i >= 0; i-- {
		errs = append(errs, spaces[i].remove())
	}
	return errors.Join(errs...)
}
