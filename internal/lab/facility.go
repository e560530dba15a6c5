package lab

import (
	"cmp"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"wardgate/internal/certs"
	"wardgate/router/control"
)

// Private are the networks that lie behind facilities and must never be seen on the internet.
var Private = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")}

// Internet is the network between the facilities: one Ethernet (a bridge), the worst case, since
// on it everybody can hand everybody frames with any address. Its own address is everybody's
// default gateway, so a packet that leaks in the clear is seen on it.
type Internet struct {
	*Netns
	Gateway netip.Addr
	prefix  netip.Prefix
	ports   int
}

// InternetDev is the interface of the internet's namespace on which all its traffic is seen.
const InternetDev = "br0"

// Internet makes the network between the facilities.
func (l *Lab) Internet() (*Internet, error) {
	n, err := l.Netns("inet")
	if err != nil {
		return nil, err
	}
	i := &Internet{Netns: n, Gateway: netip.MustParseAddr("198.18.0.254"), prefix: netip.MustParsePrefix("198.18.0.0/24")}
	if err := n.IP("link", "add", InternetDev, "type", "bridge"); err != nil {
		return nil, err
	}
	return i, n.Addr(InternetDev, netip.PrefixFrom(i.Gateway, i.prefix.Bits()).String())
}

// Join plugs a namespace into the internet, under an address, with the default route to it.
func (i *Internet) Join(n *Netns, dev string, addr netip.Addr) error {
	i.ports++
	port := fmt.Sprintf("port%d", i.ports)
	return errors.Join(
		Cable(n, dev, i.Netns, port),
		i.IP("link", "set", port, "master", InternetDev, "up"),
		n.Addr(dev, netip.PrefixFrom(addr, i.prefix.Bits()).String()),
		n.IP("route", "add", "default", "via", i.Gateway.String()),
	)
}

// TunDev is the routers' TUN device.
const TunDev = "wardgate0"

// WANDev is the router's interface towards the internet.
const WANDev = "wan0"

// Facility is a hospital, clinic or centre: a router with a wardgated, and zones with hosts.
type Facility struct {
	Name       string     // short, such as "a"; part of the namespaces' names
	Title      string     // for people, such as "hospital A"
	DeviceID   string     // identity in its device certificate
	WAN        netip.Addr // on the internet
	Zones      []*Zone
	Router     *Netns
	Daemon     *Process
	Dir        string   // configuration, state, audit record
	Binary     string   // another wardgated than the lab's; empty: the lab's
	LogLevel   string   // of the daemon; empty: debug
	Everywhere bool     // the daemon listens at all addresses, not at WAN alone
	Environ    []string // of the daemon, beside the lab's own environment and Env
	SP         *Centre  // that it gets its certificates and policies from; nil: they are brought by hand
	SPURL      string   // of the centre in the configuration; empty: it is told by Join

	lab    *Lab
	serial uint64 // of the policy issued last

	leafDER []byte            // device certificate
	handles map[string]string // service ("": the device) to CKA_ID in hex
}

// Zone is a LAN behind a facility's router.
type Zone struct {
	Name, Level string
	Dev         string // the router's interface
	Gateway     netip.Addr
	Prefix      netip.Prefix
	Hosts       map[string]*Host
}

// Host is a machine in a zone.
type Host struct {
	*Netns
	Addr netip.Addr
	Zone *Zone
}

// Facility makes the router's namespace and plugs it into the internet.
func (l *Lab) Facility(inet *Internet, name, title, deviceID, wan string) (*Facility, error) {
	n, err := l.Netns(name)
	if err != nil {
		return nil, err
	}
	f := &Facility{
		Name: name, Title: title, DeviceID: deviceID, WAN: netip.MustParseAddr(wan),
		Router: n, Dir: l.Path(name), lab: l,
	}
	for _, d := range []string{"etc", "state", "run", "tokens"} {
		if err := os.MkdirAll(filepath.Join(f.Dir, d), 0o755); err != nil {
			return nil, err
		}
	}
	return f, inet.Join(n, WANDev, f.WAN)
}

// Zone adds a LAN. gateway is the router's address in it ("10.1.2.1/24").
func (f *Facility) Zone(name, level, gateway string, hosts map[string]string) (*Zone, error) {
	p := netip.MustParsePrefix(gateway)
	z := &Zone{Name: name, Level: level, Dev: name + "0", Gateway: p.Addr(), Prefix: p.Masked(), Hosts: map[string]*Host{}}
	for host, addr := range hosts {
		n, err := f.lab.Netns(f.Name + "-" + host)
		if err != nil {
			return nil, err
		}
		if len(hosts) != 1 {
			return nil, fmt.Errorf("lab: zone %s: one host a zone, for each LAN is a cable", name)
		}
		h := &Host{Netns: n, Addr: netip.MustParseAddr(addr), Zone: z}
		if err := errors.Join(
			Cable(f.Router, z.Dev, n, "eth0"),
			f.Router.Addr(z.Dev, p.String()),
			n.Addr("eth0", netip.PrefixFrom(h.Addr, p.Bits()).String()),
			n.IP("route", "add", "default", "via", z.Gateway.String()),
		); err != nil {
			return nil, err
		}
		z.Hosts[host] = h
	}
	f.Zones = append(f.Zones, z)
	return z, nil
}

// IPReceived is the number of IPv4 packets that the host has received on any interface (RFC 4293,
// ipSystemStatsInReceives); ARP is not in it.
func (h *Host) IPReceived() (n uint64, err error) {
	err = h.Do(func() error {
		var keys []string
		for _, line := range readLines("/proc/thread-self/net/snmp") {
			f := strings.Fields(line)
			if len(f) == 0 || f[0] != "Ip:" {
				continue
			}
			if keys == nil {
				keys = f
				continue
			}
			i := slices.Index(keys, "InReceives")
			if i < 0 || i >= len(f) {
				break
			}
			n, err = strconv.ParseUint(f[i], 10, 64)
			return err
		}
		return errors.New("no InReceives in the namespace's /proc/net/snmp")
	})
	return n, err
}

// Host returns a host of the facility by its name; it panics when there is none, as only a
// mistake in the scenario can cause.
func (f *Facility) Host(name string) *Host {
	for _, z := range f.Zones {
		if h, ok := z.Hosts[name]; ok {
			return h
		}
	}
	panic("lab: facility " + f.Name + " has no host " + name)
}

// path returns a path in the facility's folder.
func (f *Facility) path(elem ...string) string {
	return filepath.Join(append([]string{f.Dir}, elem...)...)
}

// Socket is the path of the daemon's control socket.
func (f *Facility) Socket() string { return f.path("run", "control.sock") }

// AuditFile is the path of the facility's audit record.
func (f *Facility) AuditFile() string { return f.path("state", "audit.jsonl") }

// Env is what programs need in their environment to find the facility's token.
func (f *Facility) Env() []string { return []string{"SOFTHSM2_CONF=" + f.path("etc", "softhsm2.conf")} }

// ConfigFile is the path of the daemon's configuration.
func (f *Facility) ConfigFile() string { return f.path("etc", "wardgated.toml") }

// WriteConfig writes wardgated.toml; extra is appended to it, such as "[limits]\nflows = 10\n".
func (f *Facility) WriteConfig(extra string) error {
	listen := fmt.Sprintf("listen = [%q]\n", f.WAN)
	if f.Everywhere {
		listen = ""
	}
	text := fmt.Sprintf(`# %s, in the laboratory
[daemon]
state_dir = %q
run_dir = %q
log_level = %q
log_format = "console"

[token]
module = %q
label = %q
pin_file = %q
chip = %q

[policy]
anchors = [%q]

[network]
%s%s`, f.Title, f.path("state"), f.path("run"), cmp.Or(f.LogLevel, "debug"),
		softHSM, f.tokenLabel(), f.pinFile(), filepath.Join(f.lab.Bin, "wardgate-chip"),
		f.anchorFile(), listen, extra)
	if f.SP != nil {
		text += "\n[sp]\n"
		if f.SPURL != "" {
			text += fmt.Sprintf("url = %q\n", f.SPURL)
		}
		text += fmt.Sprintf("anchors = [%q]\n", f.SP.WebAnchor())
	}
	return os.WriteFile(f.ConfigFile(), []byte(text), 0o644)
}

func (f *Facility) tokenLabel() string { return "facility-" + f.Name }
func (f *Facility) pinFile() string    { return f.path("etc", "pin") }
func (f *Facility) anchorFile() string { return f.path("etc", "policy-ca.pem") }

// StartDaemon starts wardgated and waits until it says that it is ready (sd_notify) and knows how
// its token is.
func (f *Facility) StartDaemon(ctx context.Context) error {
	ready, err := f.LaunchDaemon()
	if err != nil {
		return err
	}
	return ready(ctx)
}

// LaunchDaemon is StartDaemon that does not wait; the function that it returns does.
func (f *Facility) LaunchDaemon() (wait func(context.Context) error, err error) {
	socket := f.path("run", "notify.sock")
	if err := os.RemoveAll(socket); err != nil {
		return nil, err
	}
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		return nil, err
	}
	p, err := f.lab.Start(f.Router, "wardgated-"+f.Name, append(append(f.Env(), f.Environ...), "NOTIFY_SOCKET="+socket), cmp.Or(f.Binary, filepath.Join(f.lab.Bin, "wardgated")), "-config", f.ConfigFile())
	if err != nil {
		notify.Close()
		return nil, err
	}
	f.Daemon = p
	ready := make(chan struct{})
	go func() { // reads on as long as the daemon lives: a full socket would hold it up
		buf := make([]byte, 4096)
		for said := false; ; {
			n, err := notify.Read(buf)
			if err != nil {
				return
			}
			if !said && slices.Contains(strings.Split(string(buf[:n]), "\n"), "READY=1") {
				said = true
				close(ready)
			}
		}
	}()
	go func() {
		<-p.Done()
		notify.Close()
	}()
	return func(ctx context.Context) error {
		return WaitFor(ctx, f.Title+"'s wardgated to be ready", 15*time.Second, func() error {
			if err := p.Running(); err != nil {
				return err
			}
			select {
			case <-ready:
			default:
				return errors.New("it has not said so")
			}
			s, err := f.Status(ctx)
			if err == nil && s.Token.State == control.TokenStarting {
				err = errors.New("its token is starting")
			}
			return err
		})
	}, nil
}

// Wardgate runs the operator's command line at the facility and returns what it printed; the
// error holds the exit code and the last lines of standard error.
func (f *Facility) Wardgate(ctx context.Context, args ...string) (string, error) {
	return f.WardgateReading(ctx, "", args...)
}

// WardgateReading is Wardgate with a text as standard input.
func (f *Facility) WardgateReading(ctx context.Context, input string, args ...string) (string, error) {
	cmd := f.Router.Command(ctx, filepath.Join(f.lab.Bin, "wardgate"), args...)
	cmd.Env = append(append(os.Environ(), f.Env()...), "WARDGATE_SOCKET="+f.Socket())
	var stdout, stderr strings.Builder
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(input), &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("wardgate %s at %s: %w: %s", strings.Join(args, " "), f.Title, err, strings.TrimSpace(stderr.String()+"\n"+stdout.String()))
	}
	return stdout.String(), nil
}

// Join runs `wardgate join` with the centre's URL, and returns what it printed.
func (f *Facility) Join(ctx context.Context, args ...string) (string, error) {
	return f.Wardgate(ctx, append([]string{"join", f.SP.URL()}, args...)...)
}

// Control returns a client of the daemon's control API.
func (f *Facility) Control() *control.Client { return control.NewClient(f.Socket()) }

// Status asks the daemon for its state.
func (f *Facility) Status(ctx context.Context) (*control.Status, error) {
	return f.Control().Status(ctx)
}

// Connection returns the state of one connection.
func (f *Facility) Connection(ctx context.Context, name string) (*control.Connection, error) {
	s, err := f.Status(ctx)
	if err != nil {
		return nil, err
	}
	for i := range s.Connections {
		if s.Connections[i].Name == name {
			return &s.Connections[i], nil
		}
	}
	return nil, fmt.Errorf("%s has no connection %q", f.Title, name)
}

// WaitState waits until a connection is in a state (one of control's Conn… constants).
func (f *Facility) WaitState(ctx context.Context, conn, state string, limit time.Duration) error {
	return WaitFor(ctx, fmt.Sprintf("connection %s of %s to be %s", conn, f.Title, state), limit, func() error {
		c, err := f.Connection(ctx, conn)
		if err == nil && c.State != state {
			err = fmt.Errorf("it is %s", c.State)
			if c.LastError != nil {
				err = fmt.Errorf("%w (%w)", err, c.LastError)
			}
		}
		return err
	})
}

// Audit returns the records of the facility's audit log with a sequence number above after.
func (f *Facility) Audit(after uint64) ([]control.AuditRecord, error) {
	var out []control.AuditRecord
	for _, line := range readLines(f.AuditFile()) {
		var r control.AuditRecord
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			return nil, fmt.Errorf("%s: %w", f.AuditFile(), err)
		}
		if r.Seq > after {
			out = append(out, r)
		}
	}
	return out, nil
}

// LastAudit returns the sequence number of the newest audit record.
func (f *Facility) LastAudit() (uint64, error) {
	all, err := f.Audit(0)
	if err != nil || len(all) == 0 {
		return 0, err
	}
	return all[len(all)-1].Seq, nil
}

// PolicyFile is where the daemon keeps the policy in force.
func (f *Facility) PolicyFile() string { return f.path("state", "policy.jws") }

// PolicyAnchors are what the facility judges signers of policies by.
func (f *Facility) PolicyAnchors() ([]*x509.Certificate, error) {
	pem, err := os.ReadFile(f.anchorFile())
	if err != nil {
		return nil, err
	}
	return certs.ParseCertificates(pem)
}

// DeviceCertificate is the facility's device certificate, in DER.
func (f *Facility) DeviceCertificate() []byte { return f.leafDER }
