package lab

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"
)

// EchoServer answers UDP datagrams in a namespace until it is closed.
type EchoServer struct {
	conn *net.UDPConn
	done chan struct{}
	mu   sync.Mutex
	seen map[netip.Addr]int
}

// EchoUDP starts an echo server on an address of the namespace.
func (n *Netns) EchoUDP(at netip.AddrPort) (*EchoServer, error) {
	s := &EchoServer{done: make(chan struct{}), seen: map[netip.Addr]int{}}
	if err := n.Do(func() (err error) {
		s.conn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
		return err
	}); err != nil {
		return nil, fmt.Errorf("echo server in %s: %w", n.Name, err)
	}
	go func() {
		defer close(s.done)
		buf := make([]byte, 65536)
		for {
			k, from, err := s.conn.ReadFromUDPAddrPort(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				continue // an ICMP error for an earlier answer
			}
			s.mu.Lock()
			s.seen[from.Addr().Unmap()]++
			s.mu.Unlock()
			_, _ = s.conn.WriteToUDPAddrPort(buf[:k], from) // a lost answer shows at the other end
		}
	}()
	return s, nil
}

// Seen returns how many datagrams arrived from an address.
func (s *EchoServer) Seen(from netip.Addr) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.seen[from]
}

// Total returns how many datagrams arrived at all.
func (s *EchoServer) Total() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, k := range s.seen {
		n += k
	}
	return n
}

// Close ends the server.
func (s *EchoServer) Close() {
	s.conn.Close()
	<-s.done
}

// BurstResult is what became of a burst of numbered datagrams.
type BurstResult struct {
	Sent, Received int
	First          time.Duration // from the sending of the first datagram to the first answer of all
	Missing        []int         // numbers of those without an answer
}

// Burst sends numbered datagrams, gap apart, from a namespace to an echo server, and waits until
// all are answered or wait has passed since the last was sent. The first datagram is the one that
// wakes the tunnel.
func (n *Netns) Burst(ctx context.Context, from netip.Addr, to netip.AddrPort, count int, gap, wait time.Duration) (BurstResult, error) {
	var (
		r    BurstResult
		conn *net.UDPConn
	)
	if err := n.Do(func() (err error) {
		conn, err = net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(from, 0)), net.UDPAddrFromAddrPort(to))
		return err
	}); err != nil {
		return r, err
	}
	defer conn.Close()
	answered := make([]bool, count)
	all := make(chan struct{})
	start := time.Now()
	var reader sync.WaitGroup
	reader.Go(func() {
		buf := make([]byte, 2048)
		for {
			k, err := conn.Read(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil || k < 8 {
				continue // an ICMP error: unreachable, refused
			}
			i := binary.BigEndian.Uint64(buf)
			if i >= uint64(count) || answered[i] {
				continue
			}
			if r.Received == 0 {
				r.First = time.Since(start)
			}
			answered[i] = true
			if r.Received++; r.Received == count {
				close(all)
				return
			}
		}
	})
	payload := make([]byte, 256)
	tick := time.NewTicker(max(gap, time.Microsecond))
	defer tick.Stop()
	for i := range count {
		if i > 0 {
			select {
			case <-tick.C:
			case <-ctx.Done():
			}
		}
		binary.BigEndian.PutUint64(payload, uint64(i))
		for try := 0; ; try++ {
			// A socket reports the ICMP error for an earlier datagram once, in place of sending.
			if _, err := conn.Write(payload); err == nil {
				r.Sent++
				break
			} else if try == 3 {
				break
			}
		}
	}
	select {
	case <-all:
	case <-time.After(wait):
	case <-ctx.Done():
	}
	conn.Close()
	reader.Wait()
	for i, ok := range answered {
		if !ok {
			r.Missing = append(r.Missing, i)
		}
	}
	return r, ctx.Err()
}
