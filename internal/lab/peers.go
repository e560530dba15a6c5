package lab

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// libipsecDev is the TUN device of strongSwan's kernel-libipsec; its MTU is 1400 and its routes are
// in a table of their own.
const libipsecDev = "ipsec0"

// strongSwanPair brings up strongSwan with ESP in user space, AES-128-GCM. AES-NI's own plugin comes
// first: it is the fastest of those that strongSwan has.
func (l *Lab) strongSwanPair(ctx context.Context, p *Pair) error {
	key := make([]byte, 32)
	if _, err := rand.Read(key); err != nil {
		return err
	}
	var ss [2]*StrongSwan
	for i, n := range p.routers() {
		name := "swan-" + p.side(i)
		if err := os.RemoveAll(l.Path(name)); err != nil { // of the round before
			return err
		}
		var err error
		if ss[i], err = l.startCharon(ctx, n, name, "", "aesni", "", 1, nil); err != nil {
			return err
		}
		p.Daemons = append(p.Daemons, ss[i].p)
		me, other := p.side(i), p.side(1-i)
		conf := fmt.Sprintf(`connections { bench {
 version = 2
 mobike = no
 local_addrs = %s
 remote_addrs = %s
 proposals = aes128gcm16-prfsha256-ecp256
 local { auth = psk
  id = %s }
 remote { auth = psk
  id = %s }
 children { net {
  local_ts = %s
  remote_ts = %s
  esp_proposals = aes128gcm16
 } }
} }
secrets { ike { secret = 0x%s } }
`, pairWAN[i], pairWAN[1-i], me, other, p.hosts()[i].Zone.Prefix, p.hosts()[1-i].Zone.Prefix, hex.EncodeToString(key))
		if err := ss[i].Load(ctx, conf); err != nil {
			return err
		}
	}
	if err := p.Forward(""); err != nil {
		return err
	}
	if _, err := ss[0].Ctl(ctx, "--initiate", "--child", "net"); err != nil {
		return err
	}
	for _, n := range p.routers() {
		if err := WaitFor(ctx, "strongSwan's "+libipsecDev, 5*time.Second, func() error { return n.IP("link", "show", libipsecDev) }); err != nil {
			return err
		}
	}
	return nil
}

// openVPN brings up OpenVPN between two peers, its data in user space, AES-128-GCM over UDP. Each
// knows the other's certificate.
func (l *Lab) openVPN(ctx context.Context, p *Pair) error {
	const dev = "ovpn"
	program, err := exec.LookPath("openvpn")
	if err != nil {
		return err
	}
	var prints [2]string
	for i := range prints {
		var err error
		if prints[i], err = selfSigned(l.Path("openvpn", p.side(i)+".pem"), p.side(i)+".example"); err != nil {
			return err
		}
	}
	inner := [2]string{"10.24.0.1", "10.24.0.2"}
	for _, i := range []int{1, 0} { // the server first
		pem := l.Path("openvpn", p.side(i)+".pem")
		role := "tls-client"
		if i == 1 {
			role = "tls-server\ndh none"
		}
		conf := l.Path("openvpn", p.side(i)+".conf")
		text := fmt.Sprintf(`%s
dev %s
dev-type tun
disable-dco
proto udp4
local %s
remote %s
ifconfig %s %s
tun-mtu %d
mssfix 0
fast-io
data-ciphers AES-128-GCM
cert %s
key %s
peer-fingerprint %s
verb 3
`, role, dev, pairWAN[i], pairWAN[1-i], inner[i], inner[1-i], PairMTU, pem, pem, prints[1-i])
		if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
			return err
		}
		d, err := l.Start(p.routers()[i], "openvpn-"+p.side(i), nil, program, "--config", conf)
		if err != nil {
			return err
		}
		p.Daemons = append(p.Daemons, d)
	}
	for i, n := range p.routers() {
		if err := WaitFor(ctx, "OpenVPN's device", 10*time.Second, func() error {
			if err := p.Daemons[i].Running(); err != nil {
				return err
			}
			return n.IP("link", "show", dev, "up")
		}); err != nil {
			return err
		}
	}
	return p.waitForward(ctx, dev)
}

// waitForward routes the LANs into a device as soon as it takes routes: it may still be being set up.
func (p *Pair) waitForward(ctx context.Context, dev string) error {
	return WaitFor(ctx, dev+" to take routes", 10*time.Second, func() error {
		var errs []error
		for i, n := range p.routers() {
			errs = append(errs,
				n.Sysctl("net.ipv4.ip_forward=1"),
				n.IP("route", "replace", p.hosts()[1-i].Zone.Prefix.String(), "dev", dev))
		}
		return errors.Join(errs...)
	})
}

// selfSigned writes a new key and a certificate for it, and returns the fingerprint as OpenVPN
// writes it.
func selfSigned(name, host string) (fingerprint string, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", err
	}
	at := time.Now()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(at.UnixNano()), Subject: pkix.Name{CommonName: host},
		NotBefore: at.Add(-time.Hour), NotAfter: at.Add(24 * time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return "", err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return "", err
	}
	if err := os.WriteFile(name, slices.Concat(pemBlock("CERTIFICATE", der), pemBlock("PRIVATE KEY", keyDER)), 0o600); err != nil {
		return "", err
	}
	sum := sha256.Sum256(der)
	return colons(sum[:]), nil
}

func pemBlock(typ string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: typ, Bytes: der})
}

// colons writes octets in hex with colons between them.
func colons(b []byte) string {
	parts := make([]string, len(b))
	for i, x := range b {
		parts[i] = hex.EncodeToString([]byte{x})
	}
	return strings.ToUpper(strings.Join(parts, ":"))
}

// nebula brings up Nebula with two nodes that know each other and stand for the LANs behind them;
// its cipher is AES-256-GCM.
func (l *Lab) nebula(ctx context.Context, p *Pair, t Tools) error {
	const dev, port = "neb", 4242
	inner := [2]string{"10.23.0.1", "10.23.0.2"}
	dir := l.Path("nebula")
	if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(dir, 0o700)); err != nil {
		return err
	}
	cert := func(args ...string) error {
		cmd := exec.CommandContext(ctx, filepath.Join(absolute(t.Dir), "nebula-cert"), args...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("nebula-cert: %w: %s", err, bytes.TrimSpace(out))
		}
		return nil
	}
	if err := cert("ca", "-name", "lab", "-out-crt", "ca.crt", "-out-key", "ca.key"); err != nil {
		return err
	}
	for i := range p.routers() {
		if err := cert("sign", "-name", p.side(i), "-networks", inner[i]+"/24", "-unsafe-networks", p.hosts()[i].Zone.Prefix.String()); err != nil {
			return err
		}
	}
	for i, n := range p.routers() {
		me := filepath.Join(dir, p.side(i))
		conf := fmt.Sprintf(`pki: {ca: %s, cert: %s.crt, key: %s.key}
static_host_map:
  "%s": ["%s:%d"]
lighthouse: {am_lighthouse: false}
listen: {host: 0.0.0.0, port: %d}
cipher: aes
punchy: {punch: false}
tun:
  dev: %s
  mtu: %d
  unsafe_routes:
    - {route: %s, via: %s}
logging: {level: warning}
firewall:
  outbound: [{port: any, proto: any, host: any, local_cidr: 0.0.0.0/0}]
  inbound: [{port: any, proto: any, host: any, local_cidr: 0.0.0.0/0}]
`, filepath.Join(dir, "ca.crt"), me, me, inner[1-i], pairWAN[1-i], port, port, dev, PairMTU, p.hosts()[1-i].Zone.Prefix, inner[1-i])
		if err := os.WriteFile(me+".yml", []byte(conf), 0o600); err != nil {
			return err
		}
		d, err := l.Start(n, "nebula-"+p.side(i), nil, filepath.Join(t.Dir, "nebula"), "-config", me+".yml")
		if err != nil {
			return err
		}
		p.Daemons = append(p.Daemons, d)
	}
	return p.Forward("")
}

// absolute is the path as seen from any folder.
func absolute(path string) string {
	if abs, err := filepath.Abs(path); err == nil {
		return abs
	}
	return path
}
