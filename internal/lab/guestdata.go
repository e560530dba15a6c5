package lab

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"
)

// guestEcho answers datagrams, and sends back what comes on connections. Every Debian has Perl.
const guestEcho = `use IO::Socket::INET; use IO::Select;
my $t = IO::Socket::INET->new(LocalPort => %[1]d, Listen => 5, ReuseAddr => 1) or die $!;
my $u = IO::Socket::INET->new(LocalPort => %[1]d, Proto => "udp") or die $!;
my $s = IO::Select->new($t, $u);
while (my @r = $s->can_read) {
	for my $h (@r) {
		if ($h == $t) { $s->add($t->accept); next }
		my $b;
		if ($h == $u) { my $from = $u->recv($b, 65535); $u->send($b, 0, $from) if $from; next }
		if (sysread $h, $b, 65536) {
			while (length $b) { my $n = syswrite $h, $b or last; substr($b, 0, $n) = "" }
			next;
		}
		$s->remove($h);
		close $h;
	}
}
`

// StartEcho starts an echo server for UDP and TCP at [EchoPort] of all addresses of the guest.
func (g *Guest) StartEcho(ctx context.Context) error {
	file, err := g.WriteFile("echo.pl", fmt.Sprintf(guestEcho, EchoPort))
	if err != nil {
		return err
	}
	_, err = g.Run(ctx, "setsid perl "+file+" >/dev/null 2>&1 &")
	return err
}

const guestStream = 512 << 10 // octets

// Exchange sends octets over TCP from a host to the guest's echo server, and from the guest to one that it
// starts at the host, and compares what comes back.
func (g *Guest) Exchange(ctx context.Context, n *Netns, host, guest netip.Addr) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return errors.Join(n.streamTo(ctx, host, netip.AddrPortFrom(guest, EchoPort)), g.streamTo(ctx, n, netip.AddrPortFrom(host, EchoPort)))
}

func (n *Netns) streamTo(ctx context.Context, from netip.Addr, to netip.AddrPort) error {
	var conn net.Conn
	if err := n.Do(func() (err error) {
		conn, err = (&net.Dialer{LocalAddr: &net.TCPAddr{IP: from.AsSlice()}, Timeout: 20 * time.Second}).Dial("tcp", to.String())
		return err
	}); err != nil {
		return err
	}
	defer conn.Close()
	if end, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(end); err != nil {
			return err
		}
	}
	sent, got := make([]byte, guestStream), make([]byte, guestStream)
	_, _ = rand.Read(sent) // never fails
	failed := make(chan error, 1)
	go func() { _, err := conn.Write(sent); failed <- err }()
	if n, err := io.ReadFull(conn, got); err != nil {
		return fmt.Errorf("TCP to %v: %d of %d octets came back: %w", to, n, len(got), err)
	}
	if !bytes.Equal(sent, got) {
		return fmt.Errorf("TCP to %v: other octets came back than were sent", to)
	}
	return <-failed
}

func (g *Guest) streamTo(ctx context.Context, n *Netns, at netip.AddrPort) error {
	var ln net.Listener
	if err := n.Do(func() (err error) {
		ln, err = net.Listen("tcp", at.String())
		return err
	}); err != nil {
		return err
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		buf := make([]byte, guestStream)
		if _, err := io.ReadFull(conn, buf); err == nil { // the guest sends all before it reads
			_, _ = conn.Write(buf)
		}
	})
	out, err := g.Run(ctx, fmt.Sprintf(`set -e
head -c %[1]d /dev/urandom >/run/sent
exec 3<>/dev/tcp/%[2]v/%[3]d
timeout 30 cat /run/sent >&3
timeout 30 head -c %[1]d <&3 | cmp - /run/sent`, guestStream, at.Addr(), at.Port()))
	ln.Close()
	if err != nil {
		return fmt.Errorf("TCP from guest %s: %w\n%s", g.Name, err, out)
	}
	serving.Wait()
	return nil
}
