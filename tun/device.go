package tun

import (
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

// Device is a TUN interface of the kernel. It disappears with Close.
type Device struct {
	name     string
	offloads Offloads
	queues   []*queue
	stop     *stop

	closing sync.Mutex
	closed  bool // guarded by closing
}

const tunPath = "/dev/net/tun"

// Open makes the interface, or joins one that exists with the same flags and no other user.
// It needs CAP_NET_ADMIN in the current network namespace. The link is down until someone sets it
// up.
func Open(opt Options) (*Device, error) {
	if opt.Queues == 0 {
		opt.Queues = 1
	}
	if opt.Queues < 0 || opt.Queues > 256 {
		return nil, fmt.Errorf("tun: %d queues, want 1 to 256", opt.Queues)
	}
	if len(opt.Name) >= unix.IFNAMSIZ {
		return nil, fmt.Errorf("tun: interface name %q has %d octets, want at most %d", opt.Name, len(opt.Name), unix.IFNAMSIZ-1)
	}
	if opt.MTU != 0 && (opt.MTU < 68 || opt.MTU > 65535) {
		return nil, fmt.Errorf("tun: MTU of %d octets, want 68 to 65535", opt.MTU)
	}
	st, err := newStop()
	if err != nil {
		return nil, err
	}
	d := &Device{name: opt.Name, stop: st}
	for range opt.Queues {
		if err := d.addQueue(opt.Offload); err != nil {
			_ = d.Close()
			return nil, err
		}
	}
	if opt.MTU != 0 {
		if err := setMTU(d.name, opt.MTU); err != nil {
			_ = d.Close()
			return nil, err
		}
	}
	return d, nil
}

func (d *Device) addQueue(offload bool) error {
	fd, err := unix.Open(tunPath, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("tun: open %s: %w (is the tun module there, and is this process allowed to use it?)", tunPath, err)
	}
	ifr, err := unix.NewIfreq(d.name)
	if err != nil {
		_ = unix.Close(fd)
		return fmt.Errorf("tun: interface name %q: %w", d.name, err)
	}
	ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_MULTI_QUEUE | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		_ = unix.Close(fd)
		return fmt.Errorf("tun: create interface %q, queue %d: %w (CAP_NET_ADMIN is needed, and the name must be free)", d.name, len(d.queues), err)
	}
	d.name = ifr.Name()
	granted, err := setOffload(offload, func(flags int) error { return unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, flags) })
	if err != nil {
		_ = unix.Close(fd)
		return fmt.Errorf("tun: set offloads of %s: %w", d.name, err)
	}
	if len(d.queues) == 0 {
		d.offloads = granted
	}
	d.queues = append(d.queues, newQueue(fd, d.stop, d.offloads))
	return nil
}

// setOffload asks for as much as the kernel grants; set is the ioctl.
func setOffload(want bool, set func(flags int) error) (Offloads, error) {
	const tcp = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6 | unix.TUN_F_TSO_ECN
	const udp = unix.TUN_F_USO4 | unix.TUN_F_USO6 // Linux 6.2
	if !want {
		return Offloads{}, set(0)
	}
	for _, try := range []struct {
		flags   int
		granted Offloads
	}{
		{tcp | udp, Offloads{Checksum: true, TCP: true, UDP: true}},
		{tcp, Offloads{Checksum: true, TCP: true}},
		{unix.TUN_F_CSUM, Offloads{Checksum: true}},
	} {
		err := set(try.flags)
		if err == nil {
			return try.granted, nil
		}
		if !errors.Is(err, unix.EINVAL) {
			return Offloads{}, err
		}
	}
	return Offloads{}, set(0)
}

func setMTU(name string, mtu int) error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("tun: socket to set the MTU: %w", err)
	}
	defer func() { _ = unix.Close(s) }()
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return fmt.Errorf("tun: interface name %q: %w", name, err)
	}
	ifr.SetUint32(uint32(mtu))
	if err := unix.IoctlIfreq(s, unix.SIOCSIFMTU, ifr); err != nil {
		return fmt.Errorf("tun: set MTU %d of %s: %w", mtu, name, err)
	}
	return nil
}

// Name returns the name of the interface as the kernel gave it.
func (d *Device) Name() string { return d.name }

// Offloads returns what the kernel granted.
func (d *Device) Offloads() Offloads { return d.offloads }

// Queues returns the queues, as many as were asked for. One worker owns one.
func (d *Device) Queues() []Queue {
	qs := make([]Queue, len(d.queues))
	for i, q := range d.queues {
		qs[i] = q
	}
	return qs
}

// Counters returns the sum over all queues.
func (d *Device) Counters() Counters {
	var c Counters
	for _, q := range d.queues {
		c.add(q.Counters())
	}
	return c
}

// Close removes the interface and wakes all who wait to read or to write: they get ErrClosed. It
// returns when nobody uses the descriptors any more. A second call does nothing; it too returns
// only then.
func (d *Device) Close() error {
	d.closing.Lock()
	defer d.closing.Unlock()
	if d.closed {
		return nil
	}
	d.closed = true
	for _, q := range d.queues {
		q.closed.Store(true)
	}
	d.stop.raise()
	var first error
	for _, q := range d.queues {
		if err := q.release(); err != nil && first == nil {
			first = fmt.Errorf("tun: close %s: %w", d.name, err)
		}
	}
	d.stop.close()
	return first
}
