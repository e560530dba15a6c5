package lab

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const detourDev = "detour0"

// Detour is a way through the middle of a [Line] on which a test has every packet in its hands: to
// hold it back until others have passed, to send it on twice, or to change it.
type Detour struct {
	f    *os.File
	done chan struct{}

	mu     sync.Mutex // guards what follows
	handle func(pkt []byte) [][]byte
	err    error
}

// Detour sends one of every so many packets of ESP in UDP over IPv4 that come from a side through
// handle, which is given an IP packet, that it may keep, and returns what goes on in its place. It
// is called with nil when there was nothing for a while: the time to let go of what was held back.
func (n *Line) Detour(side, oneOf int, handle func(pkt []byte) [][]byte) (*Detour, error) {
	d := &Detour{handle: handle, done: make(chan struct{})}
	if err := n.Middle.Do(func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return err
		}
		r, err := unix.NewIfreq(detourDev)
		if err == nil {
			r.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
			err = unix.IoctlIfreq(fd, unix.TUNSETIFF, r)
		}
		if err != nil {
			unix.Close(fd)
			return err
		}
		d.f = os.NewFile(uintptr(fd), detourDev)
		return nil
	}); err != nil {
		return nil, fmt.Errorf("detour: %w", err)
	}
	go d.run()
	if err := errors.Join(
		n.Middle.IP("link", "set", detourDev, "up", "txqueuelen", "10000"),
		n.Middle.IP("route", "add", "default", "dev", detourDev, "table", "77"),
		n.Middle.IP("rule", "add", "fwmark", "77", "lookup", "77"),
		n.Middle.Nft(fmt.Sprintf(`table ip detour {
	chain prerouting {
		type filter hook prerouting priority mangle; policy accept;
		iifname %q udp dport 4500 @th,64,32 != 0 numgen random mod %d == 0 meta mark set 77
	}
}
`, MiddleDevs[side], oneOf))); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

func (d *Detour) run() {
	defer close(d.done)
	buf := make([]byte, 1<<16)
	for {
		if err := d.f.SetReadDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
			d.fail(err)
			return
		}
		k, err := d.f.Read(buf)
		var pkt []byte
		switch {
		case errors.Is(err, os.ErrClosed):
			return
		case errors.Is(err, os.ErrDeadlineExceeded):
		case err != nil:
			d.fail(err)
			return
		case buf[0]>>4 != 4:
			continue // what the kernel says on every new interface
		default:
			pkt = append(pkt, buf[:k]...)
		}
		d.mu.Lock()
		out := d.handle(pkt)
		d.mu.Unlock()
		for _, b := range out {
			if _, err := d.f.Write(b); err != nil && !errors.Is(err, os.ErrClosed) {
				d.fail(err)
			}
		}
	}
}

func (d *Detour) fail(err error) {
	d.mu.Lock()
	d.err = errors.Join(d.err, err)
	d.mu.Unlock()
}

// Do calls f while no packet is being handled.
func (d *Detour) Do(f func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f()
}

// Close ends the detour, with the interface, and returns what went wrong on it. The rules that led
// to it stay until the laboratory ends: what they mark has nowhere else to go.
func (d *Detour) Close() error {
	err := d.f.Close()
	<-d.done
	return errors.Join(err, d.err)
}
