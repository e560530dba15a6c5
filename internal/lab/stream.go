package lab

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"
)

// Stream is a flow of numbered datagrams from a namespace to an echo server, that runs while
// something happens to the tunnel below it.
type Stream struct {
	conn   *net.UDPConn
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu       sync.Mutex // guards what follows
	answered []bool
	last     time.Time // of the latest answer
}

// StreamResult is what became of a stream.
type StreamResult struct {
	Sent, Received int
	Missing        []int // numbers of those without an answer
}

// Stream starts to send, gap apart, until Stop.
func (n *Netns) Stream(from netip.Addr, to netip.AddrPort, gap time.Duration) (*Stream, error) {
	ctx, cancel := context.WithCancel(context.Background())
	s := &Stream{cancel: cancel}
	if err := n.Do(func() (err error) {
		s.conn, err = net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(from, 0)), net.UDPAddrFromAddrPort(to))
		return err
	}); err != nil {
		cancel()
		return nil, err
	}
	s.wg.Go(func() { s.send(ctx, gap) })
	s.wg.Go(s.receive)
	return s, nil
}

func (s *Stream) send(ctx context.Context, gap time.Duration) {
	payload := make([]byte, 256)
	tick := time.NewTicker(gap)
	defer tick.Stop()
	for i := uint64(0); ; i++ {
		binary.BigEndian.PutUint64(payload, i)
		s.mu.Lock()
		s.answered = append(s.answered, false)
		s.mu.Unlock()
		// A socket reports the ICMP error for an earlier datagram once, in place of sending.
		for range 3 {
			if _, err := s.conn.Write(payload); err == nil {
				break
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

func (s *Stream) receive() {
	buf := make([]byte, 2048)
	for {
		k, err := s.conn.Read(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil || k < 8 {
			continue // an ICMP error: unreachable, refused
		}
		i := binary.BigEndian.Uint64(buf)
		s.mu.Lock()
		if i < uint64(len(s.answered)) {
			s.answered[i], s.last = true, time.Now()
		}
		s.mu.Unlock()
	}
}

// LastAnswer is when the latest answer came.
func (s *Stream) LastAnswer() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last
}

// Stop sends no more, waits for answers that are on their way for at most grace, and tells.
func (s *Stream) Stop(grace time.Duration) StreamResult {
	s.cancel()
	r := s.result()
	for end := time.Now().Add(grace); len(r.Missing) > 0 && time.Now().Before(end); r = s.result() {
		time.Sleep(10 * time.Millisecond)
	}
	s.conn.Close()
	s.wg.Wait()
	return r
}

func (s *Stream) result() StreamResult {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := StreamResult{Sent: len(s.answered)}
	for i, ok := range s.answered {
		if !ok {
			r.Missing = append(r.Missing, i)
		}
	}
	r.Received = r.Sent - len(r.Missing)
	return r
}
