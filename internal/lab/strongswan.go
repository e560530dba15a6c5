package lab

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// Paths of Debian's strongSwan 5.9.8. charon-systemd stays in the foreground, writes no PID file
// and runs where systemd is not the init.
const (
	charonPath  = "/usr/sbin/charon-systemd"
	swanctlPath = "/usr/sbin/swanctl"
	softHSM     = "/usr/lib/softhsm/libsofthsm2.so"
)

// strongswanConf lists the plugins, so that nothing of the machine's /etc is read.
// kernel-libipsec is ESP in user space: it must come before kernel-netlink, and always claims a
// NAT, so that ESP is UDP-encapsulated.
const strongswanConf = `charon-systemd {
    load = %[4]s random nonce pem pkcs1 pkcs8 x509 pubkey constraints revocation openssl hmac kdf sha2 sha1 curve25519 gcm drbg %[2]s kernel-libipsec kernel-netlink socket-default vici updown
    install_virtual_ip = yes
    retransmit_timeout = 1.0
    retransmit_tries = 4
    fragment_size = 1280
    %[5]s
    filelog {
        main {
            path = %[1]s/charon.log
            time_format = %%H:%%M:%%S
            time_add_ms = yes
            default = %[6]d
            ike_name = yes
            flush_line = yes
        }
    }
    plugins {
        vici {
            socket = unix://%[1]s/vici.sock
        }
        %[3]s
    }
}
swanctl {
    load = pem pkcs1 pkcs8 x509 pubkey openssl random nonce
}
`

// StrongSwan is a charon of its own, with its own configuration and VICI socket.
type StrongSwan struct {
	Dir  string
	p    *Process
	lab  *Lab
	conf string // path of swanctl.conf
}

// StrongSwanToken gives charon a PKCS#11 token for its keys.
type StrongSwanToken struct {
	Module string   // PKCS#11 library; empty: SoftHSM
	Env    []string // such as SOFTHSM2_CONF=…
}

// StartStrongSwan starts charon in a namespace. name is the folder of its state.
func (l *Lab) StartStrongSwan(ctx context.Context, n *Netns, name string, token *StrongSwanToken) (*StrongSwan, error) {
	return l.startCharon(ctx, n, name, "", "", "", 1, token)
}

// StartStrongSwanOf starts the charon of a tree (internal/interop/strongswan6.sh), which sees its own
// state under the same path.
func (l *Lab) StartStrongSwanOf(ctx context.Context, n *Netns, tree, name string) (*StrongSwan, error) {
	return l.startCharon(ctx, n, name, tree, "", "", 1, nil)
}

// StartLoadedStrongSwan starts charon for a load test: it logs next to nothing, and has settings of
// its own besides (lines of the section charon-systemd).
func (l *Lab) StartLoadedStrongSwan(ctx context.Context, n *Netns, name, settings string, token *StrongSwanToken) (*StrongSwan, error) {
	return l.startCharon(ctx, n, name, "", "", settings, 0, token)
}

// Process is the daemon's.
func (s *StrongSwan) Process() *Process { return s.p }

// startCharon starts charon, of the machine or of a tree, with plugins that come before all others, more
// settings, and a log level.
func (l *Lab) startCharon(ctx context.Context, n *Netns, name, tree, first, settings string, level int, token *StrongSwanToken) (*StrongSwan, error) {
	s := &StrongSwan{Dir: l.Path(name), lab: l}
	s.conf = filepath.Join(s.Dir, "swanctl.conf")
	for _, d := range []string{"x509", "x509ca", "x509ocsp", "x509aa", "x509ac", "x509crl", "pubkey", "private", "rsa", "ecdsa", "bliss", "pkcs8", "pkcs12"} {
		if err := os.MkdirAll(filepath.Join(s.Dir, d), 0o700); err != nil {
			return nil, err
		}
	}
	plugin, section := "", ""
	env := []string{"STRONGSWAN_CONF=" + filepath.Join(s.Dir, "strongswan.conf")}
	if token != nil {
		module := token.Module
		if module == "" {
			module = softHSM
		}
		plugin = "pkcs11"
		section = "pkcs11 { modules { softhsm { path = " + module + " } } }"
		env = append(env, token.Env...)
	}
	if err := os.WriteFile(filepath.Join(s.Dir, "strongswan.conf"), fmt.Appendf(nil, strongswanConf, s.Dir, plugin, section, first, settings, level), 0o600); err != nil {
		return nil, err
	}
	argv := []string{charonPath}
	if tree != "" {
		inside := filepath.Join(tree, s.Dir)
		if err := os.MkdirAll(inside, 0o700); err != nil {
			return nil, err
		}
		argv = []string{"unshare", "--mount", "sh", "-c", `mount --bind "$1" "$2" && exec chroot "$3" "$4"`, "sh", s.Dir, inside, tree, charonPath}
	}
	p, err := l.Start(n, "charon-"+name, env, argv...)
	if err != nil {
		return nil, err
	}
	s.p = p
	return s, WaitFor(ctx, "charon to answer", 10*time.Second, func() error {
		if err := p.Running(); err != nil {
			return err
		}
		_, err := s.Ctl(ctx, "--version", "--daemon")
		return err
	})
}

// Ctl runs swanctl against this charon; the command comes first in args.
func (s *StrongSwan) Ctl(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, swanctlPath, append(args, "--uri", "unix://"+filepath.Join(s.Dir, "vici.sock"))...)
	cmd.Env = append(os.Environ(), "STRONGSWAN_CONF="+filepath.Join(s.Dir, "strongswan.conf"), "SWANCTL_DIR="+s.Dir)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("swanctl %s: %w: %s", strings.Join(args, " "), err, lastLine(string(out)))
	}
	return string(out), nil
}

// AddCA lets charon know a CA certificate; name is how swanctl.conf refers to it.
func (s *StrongSwan) AddCA(name string, cert *x509.Certificate) error {
	return writePEM(filepath.Join(s.Dir, "x509ca", name), "CERTIFICATE", cert.Raw)
}

// AddCert lets charon know an end entity or intermediate certificate.
func (s *StrongSwan) AddCert(name string, cert *x509.Certificate) error {
	return writePEM(filepath.Join(s.Dir, "x509", name), "CERTIFICATE", cert.Raw)
}

// AddKey gives charon a private key.
func (s *StrongSwan) AddKey(name string, key any) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	return writePEM(filepath.Join(s.Dir, "private", name), "PRIVATE KEY", der)
}

// Load replaces swanctl.conf and loads it with all credentials. swanctl ends well even when a
// key did not load, so its words are looked at too.
func (s *StrongSwan) Load(ctx context.Context, conf string) error {
	if err := os.WriteFile(s.conf, []byte(conf), 0o600); err != nil {
		return err
	}
	out, err := s.Ctl(ctx, "--load-all", "--clear", "--file", s.conf)
	if err != nil {
		return err
	}
	if strings.Contains(out, "failed") {
		return fmt.Errorf("swanctl --load-all: %s", strings.TrimSpace(out))
	}
	return nil
}

// Log returns charon's log so far.
func (s *StrongSwan) Log() string {
	text, err := os.ReadFile(filepath.Join(s.Dir, "charon.log"))
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// SAs returns `swanctl --list-sas`; empty when there is none.
func (s *StrongSwan) SAs(ctx context.Context) (string, error) { return s.Ctl(ctx, "--list-sas") }

// WaitIdle waits until charon holds no IKE SA.
func (s *StrongSwan) WaitIdle(ctx context.Context, limit time.Duration) error {
	return WaitFor(ctx, "charon to hold no IKE SA", limit, func() error {
		sas, err := s.SAs(ctx)
		if err == nil && strings.TrimSpace(sas) != "" {
			err = errors.New(strings.TrimSpace(sas))
		}
		return err
	})
}

// Stop ends charon.
func (s *StrongSwan) Stop() error { return s.p.Stop(5 * time.Second) }

// SwanPeer describes a connection of RFC 4739: two certificate authentications on either side,
// the device's and then the service's, each trusting its own CA only.
type SwanPeer struct {
	LocalAddr, RemoteAddr string
	LocalDevice, LocalService,
	RemoteDevice, RemoteService string // identities
	DeviceCA, ServiceCA string // names given to AddCA
	LocalTS, RemoteTS   string // such as "10.1.2.0/24"; several separated by commas
	IKE, ESP            string // proposals
	// LocalCerts are the lines that name the two local certificates: "certs = device.pem", or
	// cert-token sections. Empty: device.pem and service.pem.
	LocalCerts [2]string
	Rounds     int    // of the local side: 2, or 1 to leave the service round out
	Secrets    string // a secrets section, for token PINs
	RekeyTime  string // of the CHILD SA; empty: strongSwan's default
	// More goes into the connection's section.
	More string
}

// Config writes the swanctl.conf: connection "dual" with child "net".
func (p SwanPeer) Config() string {
	if p.LocalCerts[0] == "" {
		p.LocalCerts[0] = "certs = device.pem"
	}
	if p.LocalCerts[1] == "" {
		p.LocalCerts[1] = "certs = service.pem"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "connections {\n dual {\n  version = 2\n  mobike = no\n  local_addrs = %s\n  remote_addrs = %s\n  proposals = %s\n  %s\n",
		p.LocalAddr, p.RemoteAddr, p.IKE, p.More)
	fmt.Fprintf(&b, "  local-1 {\n   auth = pubkey\n   id = %s\n   %s\n  }\n", p.LocalDevice, p.LocalCerts[0])
	if p.Rounds != 1 {
		fmt.Fprintf(&b, "  local-2 {\n   auth = pubkey\n   id = %s\n   %s\n  }\n", p.LocalService, p.LocalCerts[1])
	}
	fmt.Fprintf(&b, "  remote-1 {\n   auth = pubkey\n   id = %s\n   cacerts = %s\n  }\n", p.RemoteDevice, p.DeviceCA)
	fmt.Fprintf(&b, "  remote-2 {\n   auth = pubkey\n   id = %s\n   cacerts = %s\n  }\n", p.RemoteService, p.ServiceCA)
	fmt.Fprintf(&b, "  children {\n   net {\n    local_ts = %s\n    remote_ts = %s\n    esp_proposals = %s\n", p.LocalTS, p.RemoteTS, p.ESP)
	if p.RekeyTime != "" {
		fmt.Fprintf(&b, "    rekey_time = %s\n", p.RekeyTime)
	}
	b.WriteString("   }\n  }\n }\n}\n" + p.Secrets)
	return b.String()
}

func writePEM(name, typ string, der []byte) error {
	return os.WriteFile(name, pem.EncodeToMemory(&pem.Block{Type: typ, Bytes: der}), 0o600)
}

// LoadIdentity gives charon a member's certificates and keys in files, and the authorities of the
// device and of the service, under the names that [SwanPeer] expects.
func (s *StrongSwan) LoadIdentity(p *Provider, id *Identity, service string) error {
	errs := []error{
		s.AddCA("device-ca.pem", p.CA.Device.Anchor()),
		s.AddCA("service-ca.pem", p.CA.Services[service].Anchor()),
	}
	for i, role := range []string{"device", "service"} {
		errs = append(errs, s.AddCert(role+".pem", id.Certs[i][0]), s.AddKey(role+".pem", id.Keys[i]))
		for _, c := range id.Certs[i][1:] {
			// charon sends along the intermediates that it finds here.
			errs = append(errs, s.AddCA(role+"-issuing.pem", c))
		}
	}
	return errors.Join(errs...)
}

// LoadToken lets charon use the keys and certificates on a facility's token; it fills in
// LocalCerts and Secrets of peer. Only the authorities are files.
func (s *StrongSwan) LoadToken(p *Provider, f *Facility, service string, peer *SwanPeer) error {
	handles, err := f.tokenHandles(service)
	if err != nil {
		return err
	}
	var secrets strings.Builder
	secrets.WriteString("secrets {\n")
	for i, role := range []string{"device", "service"} {
		peer.LocalCerts[i] = fmt.Sprintf("cert-token {\n    handle = %s\n    module = softhsm\n   }", handles[i])
		fmt.Fprintf(&secrets, " token-%s {\n  handle = %s\n  module = softhsm\n  pin = %s\n }\n", role, handles[i], TokenPIN)
	}
	secrets.WriteString("}\n")
	peer.Secrets = secrets.String()
	errs := []error{
		s.AddCA("device-ca.pem", p.CA.Device.Anchor()),
		s.AddCA("service-ca.pem", p.CA.Services[service].Anchor()),
	}
	for _, c := range p.CA.Device.Intermediates() {
		errs = append(errs, s.AddCA("device-issuing.pem", c))
	}
	for _, c := range p.CA.Services[service].Intermediates() {
		errs = append(errs, s.AddCA("service-issuing.pem", c))
	}
	return errors.Join(errs...)
}
