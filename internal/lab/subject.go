package lab

import (
	"bytes"
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"wardgate/policy"
)

// Subject is something that carries packets between the hosts of a [Pair].
type Subject struct {
	Name string
	// Ours is set for Wardgate itself: what does not come up then is an error, not a peer that is
	// not there.
	Ours bool
	// Up brings it up on a fresh pair. It need not wait until packets pass.
	Up func(ctx context.Context, p *Pair) error
	// Extra is set for what is measured only when it is asked for by name.
	Extra bool
	// Scale brings it up with many tunnels or rules; nil where that is not measured.
	Scale func(ctx context.Context, p *Pair, s Scale) (*Scaled, error)
}

// Ports that the measurements use on host B; the policies of a [Pair]'s Wardgates allow them to
// host A.
const (
	IperfPort = 5201
	SinkPort  = 5202
	PingPort  = 5203 // UDP echo
)

// Tools says where the programs are that the subjects need.
type Tools struct {
	Dir   string // wireguard (wireguard-go), nebula, nebula-cert
	Limit string // the wardgated without a cipher
}

// Subjects lists everything that can be measured, in the order of a round.
func (l *Lab) Subjects(ctx context.Context, t Tools) ([]Subject, error) {
	w, err := l.newPairWardgate(ctx)
	if err != nil {
		return nil, err
	}
	wardgate := func(name, esp string) Subject {
		return Subject{
			Name: name, Ours: true,
			Up: func(ctx context.Context, p *Pair) error { return w.up(ctx, p, "", esp) },
			Scale: func(ctx context.Context, p *Pair, s Scale) (*Scaled, error) {
				return w.scale(ctx, p, "", esp, s)
			},
		}
	}
	return []Subject{
		wardgate("wardgate-128", "aes128gcm16"),
		wardgate("wardgate-256", "aes256gcm16"),
		{Name: "wardgate-limit", Up: func(ctx context.Context, p *Pair) error {
			if err := isLimit(ctx, t.Limit); err != nil {
				return err
			}
			return w.up(ctx, p, t.Limit, "aes128gcm16")
		}},
		{Name: "wireguard-go", Up: func(ctx context.Context, p *Pair) error { return l.wireguardGo(ctx, p, t, false) }},
		{Name: "wireguard-go-gro", Extra: true, Up: func(ctx context.Context, p *Pair) error { return l.wireguardGo(ctx, p, t, true) }},
		{Name: "nebula", Up: func(ctx context.Context, p *Pair) error { return l.nebula(ctx, p, t) }},
		{Name: "strongswan", Up: l.strongSwanPair},
		{Name: "openvpn", Up: l.openVPN},
		{Name: "raw", Up: func(_ context.Context, p *Pair) error { return p.raw() }},
		{Name: "raw-nogso", Up: func(ctx context.Context, p *Pair) error {
			if err := p.raw(); err != nil {
				return err
			}
			return p.noOffloads(ctx)
		}},
	}, nil
}

// noCipher is what the wardgated without a cipher calls itself in its version.
const noCipher = "nocipher"

// isLimit makes sure that what is measured as the limit is what it seems to be.
func isLimit(ctx context.Context, binary string) error {
	out, err := exec.CommandContext(ctx, binary, "-version").CombinedOutput()
	if err != nil {
		return fmt.Errorf("the wardgated without a cipher: %w", err)
	}
	return saysNoCipher(string(out))
}

func saysNoCipher(version string) error {
	if !strings.Contains(version, noCipher) {
		return fmt.Errorf("the wardgated without a cipher: want %q in its version, came %q: it was built without the tag wardgate_nocipher", noCipher, strings.TrimSpace(version))
	}
	return nil
}

// raw joins the hosts by the kernel's own forwarding, through the same three cables.
func (p *Pair) raw() error {
	errs := []error{p.Forward("")}
	for i, n := range p.routers() {
		errs = append(errs, n.IP("route", "add", p.hosts()[1-i].Zone.Prefix.String(), "via", pairWAN[1-i].String()))
	}
	return errors.Join(errs...)
}

// noOffloads makes every packet travel alone on all cables.
func (p *Pair) noOffloads(ctx context.Context) error {
	features := []string{"tso", "gso", "gro", "tx-udp-segmentation"}
	var errs []error
	for i, n := range p.routers() {
		errs = append(errs,
			n.Offload(ctx, pairLANDev, false, features...), n.Offload(ctx, WANDev, false, features...),
			p.hosts()[i].Offload(ctx, "eth0", false, features...))
	}
	return errors.Join(errs...)
}

// pairWardgate is what stays of the Wardgates over the rounds: authorities and tokens.
type pairWardgate struct {
	lab      *Lab
	provider *Provider
	sides    [2]*Facility
	contract *Contract
}

func (l *Lab) newPairWardgate(ctx context.Context) (*pairWardgate, error) {
	p, err := NewProvider(GroupA)
	if err != nil {
		return nil, err
	}
	w := &pairWardgate{lab: l, provider: p}
	for i, name := range []string{"a", "b"} {
		w.sides[i] = &Facility{
			Name: name, Title: "router " + name, DeviceID: name + ".devices.example", WAN: pairWAN[i],
			Dir: l.Path(name), LogLevel: "info", lab: l,
		}
		for _, d := range []string{"etc", "run", "tokens"} {
			if err := os.MkdirAll(w.sides[i].path(d), 0o755); err != nil {
				return nil, err
			}
		}
	}
	w.contract = w.benchContract()
	return w, each(w.sides[:], func(f *Facility) error { return f.Enrol(ctx, p, GroupA) })
}

// benchContract allows what the measurements send: all of it from A to B.
func (w *pairWardgate) benchContract() *Contract {
	a, b := w.sides[0], w.sides[1]
	srcs, dsts := []string{pairLAN[0].Masked().String()}, []string{pairHosts[1].String()}
	return &Contract{
		Name: "a-b", Service: GroupA, Category: policy.CategoryInformation, Parties: [2]*Facility{a, b},
		Flows: []Agreed{
			{"iperf", a, srcs, dsts, "tcp", []string{strconv.Itoa(IperfPort)}},
			{"sink", a, srcs, dsts, "udp", []string{strconv.Itoa(SinkPort)}},
			{"echo", a, srcs, dsts, "udp", []string{strconv.Itoa(PingPort)}},
			{"ping", a, srcs, dsts, "icmp", nil},
		},
	}
}

// up starts both Wardgates without a memory of earlier rounds, with a policy that allows one ESP
// suite. binary is another wardgated than the lab's.
func (w *pairWardgate) up(ctx context.Context, p *Pair, binary, esp string) error {
	if err := w.start(ctx, p, binary); err != nil {
		return err
	}
	return each(w.sides[:], func(f *Facility) error {
		d, err := w.provider.Policy(f, []*Contract{w.contract})
		if err != nil {
			return err
		}
		d.Suites.ESP = []string{esp}
		return f.InstallPolicy(ctx, w.provider, d)
	})
}

func (w *pairWardgate) start(ctx context.Context, p *Pair, binary string) error {
	for i, f := range w.sides {
		f.Router, f.Zones, f.Binary = p.routers()[i], []*Zone{p.hosts()[i].Zone}, binary
	}
	if err := each(w.sides[:], func(f *Facility) error {
		if err := errors.Join(os.RemoveAll(f.path("state")), os.MkdirAll(f.path("state"), 0o755), f.WriteConfig("")); err != nil {
			return err
		}
		return f.StartDaemon(ctx)
	}); err != nil {
		return err
	}
	for _, f := range w.sides {
		p.Daemons = append(p.Daemons, f.Daemon)
	}
	return nil
}

// wireguardGo brings up the Go implementation of WireGuard. It is set up over its own socket
// (https://www.wireguard.com/xplatform/), which is named for the interface and lies in a fixed
// folder: hence two names for the two ends. With gro, the LAN interfaces coalesce forwarded UDP too.
func (l *Lab) wireguardGo(ctx context.Context, p *Pair, t Tools, gro bool) error {
	const port = 51820
	var keys [2]*ecdh.PrivateKey
	for i := range keys {
		var err error
		if keys[i], err = ecdh.X25519().GenerateKey(rand.Reader); err != nil {
			return err
		}
	}
	for i, n := range p.routers() {
		dev := "wglab" + p.side(i)
		d, err := l.Start(n, "wireguard-"+p.side(i), []string{"LOG_LEVEL=error"}, filepath.Join(t.Dir, "wireguard"), "-f", dev)
		if err != nil {
			return err
		}
		p.Daemons = append(p.Daemons, d)
		conf := fmt.Sprintf("private_key=%s\nlisten_port=%d\npublic_key=%s\nendpoint=%s:%d\nallowed_ip=%s\nallowed_ip=%s\n",
			hex.EncodeToString(keys[i].Bytes()), port, hex.EncodeToString(keys[1-i].PublicKey().Bytes()),
			pairWAN[1-i], port, p.hosts()[1-i].Zone.Prefix, pairMany[1-i])
		if err := WaitFor(ctx, "wireguard-go's socket", 5*time.Second, func() error {
			if err := d.Running(); err != nil {
				return err
			}
			return wireguardSet(ctx, filepath.Join("/var/run/wireguard", dev+".sock"), conf)
		}); err != nil {
			return err
		}
		if err := errors.Join(
			n.IP("link", "set", dev, "mtu", strconv.Itoa(PairMTU), "up"),
			n.Sysctl("net.ipv4.ip_forward=1"),
			n.IP("route", "add", p.hosts()[1-i].Zone.Prefix.String(), "dev", dev),
		); err != nil {
			return err
		}
		if gro {
			if err := n.Offload(ctx, pairLANDev, true, "gro", "rx-udp-gro-forwarding"); err != nil {
				return err
			}
		}
	}
	return nil
}

// side is the letter of a side.
func (p *Pair) side(i int) string { return [2]string{"a", "b"}[i] }

func wireguardSet(ctx context.Context, socket, conf string) error {
	c, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(2 * time.Second)); err != nil {
		return err
	}
	if _, err := io.WriteString(c, "set=1\n"+conf+"\n"); err != nil {
		return err
	}
	var answer []byte
	buf := make([]byte, 256)
	for !bytes.HasSuffix(answer, []byte("\n\n")) {
		n, err := c.Read(buf)
		if err != nil {
			return fmt.Errorf("answer of wireguard-go %q: %w", answer, err)
		}
		answer = append(answer, buf[:n]...)
	}
	if !bytes.Equal(answer, []byte("errno=0\n\n")) {
		return fmt.Errorf("wireguard-go refuses its configuration: %q", answer)
	}
	return nil
}
