package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"
)

// Capture is a running tcpdump that writes what it sees to a file.
type Capture struct {
	File string
	p    *Process
}

// Capture starts tcpdump on an interface of a namespace and waits until it sees packets.
func (l *Lab) Capture(ctx context.Context, n *Netns, name, dev string) (*Capture, error) {
	return l.capture(ctx, n, name, dev, "-s", "0", "-B", "8192")
}

func (l *Lab) capture(ctx context.Context, n *Netns, name, dev string, room ...string) (*Capture, error) {
	c := &Capture{File: l.Path("pcap", name+".pcap")}
	args := append([]string{"tcpdump", "--immediate-mode", "-U", "-n", "-Z", "root", "-i", dev, "-w", c.File}, room...)
	p, err := l.Start(n, "tcpdump-"+name, nil, args...)
	if err != nil {
		return nil, err
	}
	c.p = p
	return c, WaitFor(ctx, "tcpdump to listen on "+dev, 5*time.Second, func() error {
		if err := p.Running(); err != nil {
			return err
		}
		if !strings.Contains(p.Tail(20), "listening on") {
			return errors.New("not listening yet")
		}
		return nil
	})
}

// Stop ends the capture; the file is complete afterwards.
func (c *Capture) Stop() error { return c.p.Stop(3 * time.Second) }

// Packets reads what has been captured so far.
func (c *Capture) Packets() ([]gopacket.Packet, error) {
	f, err := os.Open(c.File)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	r, err := pcapgo.NewReader(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c.File, err)
	}
	var out []gopacket.Packet
	for {
		data, info, err := r.ReadPacketData()
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return out, nil // tcpdump may be in the middle of the last one
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", c.File, err)
		}
		p := gopacket.NewPacket(data, r.LinkType(), gopacket.Default)
		p.Metadata().CaptureInfo = info
		out = append(out, p)
	}
}

// Wire is what an underlay capture holds.
type Wire struct {
	Packets int
	IKE     int      // UDP 500, and UDP 4500 with the non-ESP marker
	ESP     int      // protocol 50, and UDP 4500 without it
	Clear   []string // packets with an inner address that went over the internet unprotected
}

// Wire sorts the packets of an underlay capture; private are the networks behind the facilities.
func (c *Capture) Wire(private ...netip.Prefix) (Wire, error) {
	var w Wire
	packets, err := c.Packets()
	if err != nil {
		return w, err
	}
	for _, p := range packets {
		w.Packets++
		nl := p.NetworkLayer()
		if nl == nil {
			continue
		}
		for _, e := range [][]byte{nl.NetworkFlow().Src().Raw(), nl.NetworkFlow().Dst().Raw()} {
			a, _ := netip.AddrFromSlice(e)
			for _, priv := range private {
				if priv.Contains(a) {
					w.Clear = append(w.Clear, fmt.Sprintf("%s %s, %d bytes", nl.LayerType(), nl.NetworkFlow(), p.Metadata().Length))
				}
			}
		}
		if ip, ok := nl.(*layers.IPv4); ok && ip.Protocol == layers.IPProtocolESP {
			w.ESP++
			continue
		}
		udp, ok := p.TransportLayer().(*layers.UDP)
		if !ok {
			continue
		}
		switch {
		case udp.SrcPort == 500 || udp.DstPort == 500:
			w.IKE++
		case udp.SrcPort != 4500 && udp.DstPort != 4500:
		case len(udp.Payload) >= 4 && string(udp.Payload[:4]) == "\x00\x00\x00\x00":
			w.IKE++
		case len(udp.Payload) > 1:
			w.ESP++
		}
	}
	return w, nil
}
