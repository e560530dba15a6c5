package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/vishvananda/netns"
)

const (
	nsPrefix = "wg-"
	nsFolder = "/run/netns"
)

// Netns is a network namespace of the lab, visible in `ip netns list`.
type Netns struct {
	Name string // such as "wg-demo-a"
	lab  *Lab
}

// Netns makes a network namespace. IPv6 is off unless the namespace is given IPv6 addresses with
// [Netns.Addr], so that captures show nothing but the experiment.
func (l *Lab) Netns(name string) (*Netns, error) {
	n := &Netns{Name: nsPrefix + l.Name + "-" + name, lab: l}
	if err := l.note("netns", n.Name); err != nil {
		return nil, err
	}
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil, errors.New("lab: closed")
	}
	l.spaces = append(l.spaces, n)
	l.mu.Unlock()
	if err := run("ip", "netns", "add", n.Name); err != nil {
		return nil, err
	}
	if err := n.IP("link", "set", "lo", "up"); err != nil {
		return nil, err
	}
	return n, n.Sysctl(
		"net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.default.disable_ipv6=1",
		"net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.default.rp_filter=0",
	)
}

// File is the path by which nsenter finds the namespace.
func (n *Netns) File() string { return filepath.Join(nsFolder, n.Name) }

func (n *Netns) remove() error {
	if _, err := os.Lstat(n.File()); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return run("ip", "netns", "del", n.Name)
}

// IP runs ip(8) in the namespace.
func (n *Netns) IP(args ...string) error {
	return run("ip", append([]string{"-n", n.Name}, args...)...)
}

// Sysctl sets "key=value" pairs of the namespace's network settings.
func (n *Netns) Sysctl(pairs ...string) error {
	return n.Do(func() error {
		for _, p := range pairs {
			key, value, _ := strings.Cut(p, "=")
			// A thread that has entered a namespace sees that namespace's settings.
			if err := os.WriteFile("/proc/sys/"+strings.ReplaceAll(key, ".", "/"), []byte(value), 0); err != nil {
				return err
			}
		}
		return nil
	})
}

// Addr gives an interface of the namespace addresses ("10.1.2.1/24") and sets it up.
func (n *Netns) Addr(dev string, addrs ...string) error {
	for _, a := range addrs {
		p, err := netip.ParsePrefix(a)
		if err != nil {
			return err
		}
		args := []string{"addr", "add", a, "dev", dev}
		if p.Addr().Is6() {
			if err := n.Sysctl("net.ipv6.conf."+dev+".disable_ipv6=0", "net.ipv6.conf.all.disable_ipv6=0"); err != nil {
				return err
			}
			args = append(args, "nodad")
		}
		if err := n.IP(args...); err != nil {
			return err
		}
	}
	return n.IP("link", "set", dev, "up")
}

// Nft loads a ruleset (the text that nft -f reads) in the namespace, beside what is there.
func (n *Netns) Nft(ruleset string) error {
	cmd := exec.Command("nsenter", "--net="+n.File(), "nft", "-f", "-")
	cmd.Stdin = strings.NewReader(ruleset)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("nft in %s: %w: %s", n.Name, err, strings.TrimSpace(string(out)))
	}
	return nil
}

// Command prepares a program that runs in the namespace; it is nsenter's own process that becomes
// the program, so its PID is the program's. The mount namespace stays the machine's.
func (n *Netns) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, "nsenter", append([]string{"--net=" + n.File(), "--", name}, args...)...)
}

// Run runs a program in the namespace and returns what it printed on both outputs.
func (n *Netns) Run(ctx context.Context, name string, args ...string) (string, error) {
	out, err := n.Command(ctx, name, args...).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s %s in %s: %w: %s", name, strings.Join(args, " "), n.Name, err, lastLine(string(out)))
	}
	return string(out), err
}

// Do calls f on a thread that is inside the namespace: sockets that f opens belong to it for as
// long as they live. f must not start goroutines that open sockets of their own.
func (n *Netns) Do(f func() error) error {
	runtime.LockOSThread()
	home, err := netns.Get()
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer home.Close()
	there, err := netns.GetFromPath(n.File())
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("namespace %s: %w", n.Name, err)
	}
	defer there.Close()
	if err := netns.Set(there); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter namespace %s: %w", n.Name, err)
	}
	err = f()
	if back := netns.Set(home); back != nil {
		// The thread stays locked, so the runtime ends it with this goroutine: nothing else runs in a strange namespace.
		return errors.Join(err, fmt.Errorf("leave namespace %s: %w", n.Name, back))
	}
	runtime.UnlockOSThread()
	return err
}

// Cable joins two namespaces by a veth pair.
func Cable(a *Netns, aDev string, b *Netns, bDev string) error {
	return run("ip", "link", "add", aDev, "netns", a.Name, "type", "veth", "peer", "name", bDev, "netns", b.Name)
}

// run runs a program of the machine; the error holds what it printed.
func run(name string, args ...string) error {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

func lastLine(s string) string {
	s = strings.TrimSpace(s)
	return s[strings.LastIndexByte(s, '\n')+1:]
}
