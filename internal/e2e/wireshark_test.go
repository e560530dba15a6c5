package e2e

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"wardgate/internal/lab"
)

func needTshark(t *testing.T) {
	t.Helper()
	needRoot(t)
	if _, err := exec.LookPath("tshark"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("%v: run .ci/install", err)
		}
		t.Skipf("%v: run .ci/install", err)
	}
}

// sealed is an ESP packet of a capture: what was seen of it on the wire, and what tshark found
// inside.
type sealed struct {
	frame int // from 1
	outer outerHeader
	inner []byte // IP packet; nil: tshark could not decrypt it, or its ICV is wrong
	why   string // of that
}

// outerHeader is what is looked at of an outer IP header.
type outerHeader struct {
	src, dst netip.Addr
	tos, ttl uint8
	df, frag bool // IPv6: no router fragments, so df is always set; frag: there is a fragment header
	proto    layers.IPProtocol
}

// wireshark reads an underlay capture. It tells ESP from all else, and has tshark open it with the
// keys of a key log.
func wireshark(t *testing.T, c *lab.Capture, keys string) (esp []sealed, others []gopacket.Packet) {
	t.Helper()
	packets, err := c.Packets()
	must(t, err)
	opened := tshark(t, c.File, keys)
	for i, p := range packets {
		o, ok := outerOf(p)
		if !ok || !isESP(p, o) {
			if o.frag {
				t.Errorf("frame %d is a fragment: %v", i+1, p)
			}
			others = append(others, p)
			continue
		}
		s := sealed{frame: i + 1, outer: o}
		if x, ok := opened[i+1]; ok {
			s.inner, s.why = x.inner, x.why
		} else {
			s.why = "tshark sees no ESP in it"
		}
		esp = append(esp, s)
	}
	return esp, others
}

// isESP tells ESP, as protocol 50 or in UDP (RFC 3948, section 2), from everything else.
func isESP(p gopacket.Packet, o outerHeader) bool {
	if udp, ok := p.TransportLayer().(*layers.UDP); ok && (udp.SrcPort == 4500 || udp.DstPort == 4500) {
		return len(udp.Payload) > 4 && !bytes.HasPrefix(udp.Payload, make([]byte, 4))
	}
	return o.proto == layers.IPProtocolESP
}

func outerOf(p gopacket.Packet) (o outerHeader, ok bool) {
	switch ip := p.NetworkLayer().(type) {
	case *layers.IPv4:
		o = outerHeader{tos: ip.TOS, ttl: ip.TTL, df: ip.Flags&layers.IPv4DontFragment != 0, frag: ip.Flags&layers.IPv4MoreFragments != 0 || ip.FragOffset != 0, proto: ip.Protocol}
		o.src, _ = netip.AddrFromSlice(ip.SrcIP)
		o.dst, _ = netip.AddrFromSlice(ip.DstIP)
		return o, true
	case *layers.IPv6:
		o = outerHeader{tos: ip.TrafficClass, ttl: ip.HopLimit, df: true, frag: p.Layer(layers.LayerTypeIPv6Fragment) != nil, proto: ip.NextHeader}
		o.src, _ = netip.AddrFromSlice(ip.SrcIP)
		o.dst, _ = netip.AddrFromSlice(ip.DstIP)
		return o, true
	}
	return o, false
}

type openedESP struct {
	inner []byte
	why   string
}

// tshark decrypts the ESP packets of a capture and checks their ICVs; by frame number.
func tshark(t *testing.T, file, keys string) map[int]openedESP {
	t.Helper()
	dir := t.TempDir()
	text, err := os.ReadFile(keys)
	must(t, err, os.WriteFile(filepath.Join(dir, "esp_sa"), text, 0o600))
	cmd := exec.CommandContext(t.Context(), "tshark", "-r", file, "-n",
		"-o", "esp.enable_encryption_decode:TRUE", "-o", "esp.enable_authentication_check:TRUE", "-Y", "esp",
		"-T", "fields", "-E", "separator=|", "-e", "frame.number", "-e", "esp.spi", "-e", "esp.icv_good", "-e", "esp.contained_data", "-e", "esp.decrypted_data")
	cmd.Env = append(os.Environ(), "WIRESHARK_CONFIG_DIR="+dir)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("tshark: %v\n%s", err, stderr.String())
	}
	m := map[int]openedESP{}
	for line := range strings.Lines(string(out)) {
		f := strings.Split(strings.TrimSpace(line), "|")
		if len(f) != 5 {
			t.Fatalf("tshark: want 5 fields, came %q", line)
		}
		frame, err := strconv.Atoi(f[0])
		must(t, err)
		x := openedESP{}
		switch {
		case f[2] != "1":
			x.why = "the ICV of SPI " + f[1] + " is not good: " + f[2]
		case f[3] == "":
			x.why = "SPI " + f[1] + " is not decrypted: " + f[4]
		default:
			x.inner, err = hex.DecodeString(strings.ReplaceAll(f[3], ":", ""))
			must(t, err)
		}
		m[frame] = x
	}
	return m
}

// inner is a decrypted packet, parsed.
type inner struct {
	src, dst         netip.Addr
	tos, ttl         uint8
	df, frag         bool
	proto            layers.IPProtocol
	srcPort, dstPort uint16
	seq              uint32
	syn              bool
	icmpType         uint8
	payload          []byte
}

func (p *inner) isICMP() bool {
	return p.proto == layers.IPProtocolICMPv4 || p.proto == layers.IPProtocolICMPv6
}

// parseInner reads a whole packet, and fails where a length or a checksum is wrong.
func parseInner(b []byte) (*inner, error) {
	p := &inner{}
	var upper []byte
	switch {
	case len(b) >= 20 && b[0] == 0x45:
		if n := int(binary.BigEndian.Uint16(b[2:])); n != len(b) {
			return nil, fmt.Errorf("the IPv4 header says %d octets, there are %d", n, len(b))
		}
		if sum(b[:20], 0) != 0xffff {
			return nil, fmt.Errorf("wrong IPv4 header checksum: %x", b[:20])
		}
		frag := binary.BigEndian.Uint16(b[6:])
		p.tos, p.ttl, p.proto, p.df, p.frag = b[1], b[8], layers.IPProtocol(b[9]), frag&0x4000 != 0, frag&0x3fff != 0
		p.src, p.dst = netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
		upper = b[20:]
	case len(b) >= 40 && b[0]>>4 == 6:
		if n := int(binary.BigEndian.Uint16(b[4:])) + 40; n != len(b) {
			return nil, fmt.Errorf("the IPv6 header says %d octets, there are %d", n, len(b))
		}
		p.tos, p.ttl, p.proto, p.df = b[0]<<4|b[1]>>4, b[7], layers.IPProtocol(b[6]), true
		p.src, p.dst = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
		upper = b[40:]
	default:
		return nil, fmt.Errorf("no IP packet without options: %x", b[:min(len(b), 40)])
	}
	if p.frag {
		return p, nil
	}
	pseudo := sum(p.src.AsSlice(), 0) + sum(p.dst.AsSlice(), 0) + uint32(p.proto) + uint32(len(upper))
	if p.proto == layers.IPProtocolICMPv4 {
		pseudo = 0
	}
	if len(upper) < 8 || sum(upper, pseudo) != 0xffff {
		return nil, fmt.Errorf("wrong checksum behind the IP header: %x…", upper[:min(len(upper), 40)])
	}
	p.srcPort, p.dstPort = binary.BigEndian.Uint16(upper), binary.BigEndian.Uint16(upper[2:])
	switch p.proto {
	case layers.IPProtocolTCP:
		p.seq, p.syn = binary.BigEndian.Uint32(upper[4:]), upper[13]&2 != 0
		p.payload = upper[upper[12]>>4*4:]
	case layers.IPProtocolUDP:
		p.payload = upper[8:]
	default:
		p.icmpType, p.payload = upper[0], upper[8:]
	}
	return p, nil
}

// sum is the Internet checksum's sum (RFC 1071), folded; plain and slow.
func sum(b []byte, start uint32) uint32 {
	s := start
	for i := 0; i < len(b); i += 2 {
		w := uint32(b[i]) << 8
		if i+1 < len(b) {
			w |= uint32(b[i+1])
		}
		s += w
		s = s&0xffff + s>>16
	}
	for s>>16 != 0 {
		s = s&0xffff + s>>16
	}
	return s
}
