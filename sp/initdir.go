package sp

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"wardgate/internal/certs"
	"wardgate/policy"
	"wardgate/sp/issue"
	"wardgate/sp/registry"
)

// makeTimeout bounds the making of a key on the token, which takes some smart cards long.
const makeTimeout = 3 * time.Minute

// InitOptions say how a centre's folder is made.
type InitOptions struct {
	Issuer        string            // who makes the policies; a DNS name
	Organization  string            // in subjects of CAs; may be empty
	Hosts         []string          // names and addresses of the server; empty: Issuer
	DeviceAnchors []byte            // PEM: roots of device certificates
	DeviceCAs     []byte            // PEM: issuing CAs below them; may be empty
	Services      map[string]string // name to DNS domain: services whose CA is made
	Token         *Token            // where the policy signer's keys and the CAs' are made; nil: in files
	Listen        string            // as in the configuration; empty: its default
	Status        string
	StatusURL     string
}

// Init makes a folder with everything that a small centre or a laboratory needs: the configuration, keys
// and certificates in files, an SQLite database to be. The folder appears whole or not at all.
// Production keeps the keys of CAs and of the policy signer on a token (InitOptions.Token).
func Init(dir string, o InitOptions, now time.Time, rand io.Reader) error {
	if !registry.ValidDNSName(o.Issuer) {
		return fmt.Errorf("issuer: expected a DNS name of at least two labels, came %s", certs.Quote(o.Issuer))
	}
	for _, pem := range [][]byte{o.DeviceAnchors, o.DeviceCAs} {
		if len(pem) == 0 {
			continue
		}
		if _, err := certs.ParseCertificates(pem); err != nil {
			return fmt.Errorf("trust in device certificates: %w", err)
		}
	}
	if len(o.DeviceAnchors) == 0 {
		return errors.New("trust in device certificates: expected the roots of device certificates, came none; they are the device CA's, which is not the centre's")
	}
	if _, err := os.Lstat(dir); err == nil {
		return fmt.Errorf("folder of the centre: %s exists already: %w", dir, fs.ErrExist)
	}
	tmp, err := os.MkdirTemp(filepath.Dir(dir), "."+filepath.Base(dir)+"-*") // mode 0700
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	var token Token
	if o.Token != nil {
		token = *o.Token
		if token.Module == "" || token.Label == "" {
			return fmt.Errorf("keys on a token: %w", errNoToken)
		}
		for _, p := range []*string{&token.Module, &token.PINFile, &token.Chip} {
			if *p == "" {
				continue
			}
			if *p, err = filepath.Abs(*p); err != nil {
				return err
			}
		}
	}
	if token.Chip == "" {
		token.Chip = DefaultChip
	}
	f := &folder{dir: tmp, o: o, now: now, rand: rand, token: newKeyToken(token, "", slog.New(slog.DiscardHandler))}
	err = f.fill()
	if err == nil {
		err = os.Rename(tmp, dir)
	}
	if err != nil {
		err = errors.Join(err, f.undo())
	}
	return errors.Join(err, f.token.close())
}

// folder is a centre's folder in the making.
type folder struct {
	dir   string
	o     InitOptions
	now   time.Time
	rand  io.Reader
	token *keyToken
	made  []*tokenSigner
}

// undo deletes the keys on the token that nothing will name.
func (f *folder) undo() error {
	ctx, cancel := context.WithTimeout(context.Background(), makeTimeout)
	defer cancel()
	var all []error
	for _, k := range f.made {
		all = append(all, f.token.remove(ctx, k))
	}
	// Those of CAs are named in the folder before they are made.
	err := filepath.WalkDir(filepath.Join(f.dir, "services"), func(path string, _ fs.DirEntry, err error) error {
		if err != nil || filepath.Ext(path) != ".uri" {
			return err
		}
		line, err := os.ReadFile(path)
		if err == nil {
			err = f.token.removeNamed(ctx, string(line))
		}
		return err
	})
	if !errors.Is(err, fs.ErrNotExist) {
		all = append(all, err)
	}
	return errors.Join(all...)
}

// key makes a key: where the token is to have it, on the token.
func (f *folder) key(label string, onToken bool) (crypto.Signer, error) {
	if !onToken {
		return ecdsa.GenerateKey(elliptic.P256(), f.rand)
	}
	m := caMaker{rand: f.rand}
	label, err := m.label(f.o.Issuer, 1, label)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), makeTimeout)
	defer cancel()
	k, err := f.token.generate(ctx, label, false)
	if err == nil {
		f.made = append(f.made, k)
	}
	return k, err
}

func (f *folder) fill() error {
	o, dir := &f.o, f.dir
	hosts := o.Hosts
	if len(hosts) == 0 {
		hosts = []string{o.Issuer}
	}
	web := &x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			web.IPAddresses = append(web.IPAddresses, ip)
		} else {
			web.DNSNames = append(web.DNSNames, h)
		}
	}
	pol := &x509.Certificate{DNSNames: []string{o.Issuer}, UnknownExtKeyUsage: []asn1.ObjectIdentifier{certs.EKUPolicySigning}}
	policyKey := "policy.key"
	for _, k := range []struct {
		name, title string
		leaf        *x509.Certificate
		onToken     bool // each connection needs the server's key, which is too much for many a token
	}{{"web", "Server", web, false}, {"policy", "Policy", pol, o.Token != nil}} {
		k.leaf.Subject = pkix.Name{CommonName: o.Issuer}
		line, err := f.pair(k.name, k.title, k.leaf, k.onToken)
		if err != nil {
			return err
		}
		if line != "" {
			policyKey = line
		}
	}
	config := configText(o, f.token.cfg, policyKey)
	if _, err := ParseConfig(filepath.Join(dir, "wardgate-sp.toml"), []byte(config)); err != nil {
		return err
	}
	for name, data := range map[string][]byte{"wardgate-sp.toml": []byte(config), "device-anchors.pem": o.DeviceAnchors, "device-cas.pem": o.DeviceCAs} {
		if len(data) == 0 {
			continue
		}
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			return err
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "services"), 0o700); err != nil {
		return err
	}
	for name, domain := range o.Services {
		if err := f.service(name, domain); err != nil {
			return err
		}
	}
	return nil
}

// service makes a service's first CA.
func (f *folder) service(name, domain string) error {
	m := &caMaker{dir: filepath.Join(f.dir, "services"), org: f.o.Organization, token: f.token, now: f.now, rand: f.rand}
	ctx, cancel := context.WithTimeout(context.Background(), makeTimeout)
	defer cancel()
	_, err := m.make(ctx, name, domain, f.o.Token != nil, time.Time{})
	return err
}

func configText(o *InitOptions, t Token, policyKey string) string {
	var b strings.Builder
	line := func(key, value string) {
		if value != "" {
			fmt.Fprintf(&b, "%s = %q\n", key, value)
		}
	}
	line("issuer", o.Issuer)
	b.WriteString("\n[database]\n")
	line("url", "sqlite:centre.db")
	if o.Token != nil {
		b.WriteString("\n[token]\n")
		line("module", t.Module)
		line("label", t.Label)
		line("pin_file", t.PINFile)
		line("pin_credential", t.PINCredential)
		line("pin_env", t.PINEnv)
		line("chip", t.Chip)
		line("user", t.User)
	}
	b.WriteString("\n[server]\n")
	line("listen", o.Listen)
	line("certificate", "web.pem")
	line("key", "web.key")
	line("status", o.Status)
	line("status_url", o.StatusURL)
	b.WriteString("\n[devices]\nanchors = [\"device-anchors.pem\"]\n")
	if len(o.DeviceCAs) > 0 {
		b.WriteString("intermediates = [\"device-cas.pem\"]\n")
	}
	b.WriteString("\n[services]\n")
	line("dir", "services")
	b.WriteString("\n[policy]\n")
	line("key", policyKey)
	line("certificate", "policy.pem")
	return b.String()
}

// pair makes a root and a certificate below it: NAME-root.pem, NAME-root.key, NAME.pem, NAME.key. Of keys
// on the token, NAME-root.uri says where the root's is, and the leaf's reference is returned.
func (f *folder) pair(name, title string, leaf *x509.Certificate, onToken bool) (string, error) {
	dir, org, now, rand := f.dir, f.o.Organization, f.now, f.rand
	const year = 365 * 24 * time.Hour
	from := now.Add(-time.Hour).Truncate(time.Second)
	subject := pkix.Name{CommonName: title + " Root"}
	if org != "" {
		subject.Organization, leaf.Subject.Organization = []string{org}, []string{org}
	}
	root := &x509.Certificate{
		Subject: subject, NotBefore: from, NotAfter: from.Add(20 * year), IsCA: true, BasicConstraintsValid: true,
		MaxPathLen: 1, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	leaf.NotBefore, leaf.NotAfter, leaf.KeyUsage, leaf.BasicConstraintsValid = from, from.Add(2*year), x509.KeyUsageDigitalSignature, true
	rootKey, err := f.key(name+"-root", onToken)
	if err != nil {
		return "", err
	}
	key, err := f.key(name, onToken)
	if err != nil {
		return "", err
	}
	if root, err = certify(root, root, rootKey.Public(), rootKey, rand); err != nil {
		return "", err
	}
	if leaf, err = certify(leaf, root, key.Public(), rootKey, rand); err != nil {
		return "", err
	}
	for file, c := range map[string]*x509.Certificate{name + "-root.pem": root, name + ".pem": leaf} {
		if err := os.WriteFile(filepath.Join(dir, file), certs.EncodePEM(c), 0o600); err != nil {
			return "", err
		}
	}
	line := ""
	for file, k := range map[string]crypto.Signer{name + "-root": rootKey, name: key} {
		if r, ok := k.(issue.Reference); ok {
			if file == name {
				line = r.Reference()
				continue
			}
			if err := os.WriteFile(filepath.Join(dir, file+".uri"), []byte(r.Reference()+"\n"), 0o600); err != nil {
				return "", err
			}
			continue
		}
		der, err := x509.MarshalPKCS8PrivateKey(k)
		if err != nil {
			return "", err
		}
		if err := os.WriteFile(filepath.Join(dir, file+".key"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600); err != nil {
			return "", err
		}
	}
	return line, nil
}

func certify(t, parent *x509.Certificate, pub crypto.PublicKey, key crypto.Signer, rand io.Reader) (*x509.Certificate, error) {
	var n [16]byte
	if _, err := io.ReadFull(rand, n[:]); err != nil {
		return nil, err
	}
	n[0] = n[0]&0x7f | 0x40 // positive, and of one length
	t.SerialNumber = new(big.Int).SetBytes(n[:])
	der, err := x509.CreateCertificate(rand, t, parent, pub, key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// MakeServiceKey makes what a service of the registry needs before devices can have it: its CA (or the
// next one, with which it goes on), or its pre-shared key. It returns what was made. Running instances take
// it up within a minute.
func (c *Centre) MakeServiceKey(r *registry.Registry, name string) (string, error) {
	s := r.Service(name)
	if s == nil {
		return "", fmt.Errorf("service: expected one of the registry, came %s; see: wardgate-sp service list", certs.Quote(name))
	}
	if s.Auth != policy.AuthPSK {
		ctx, cancel := context.WithTimeout(context.Background(), makeTimeout)
		defer cancel()
		return c.MakeCA(ctx, r, s.Name, CAOptions{})
	}
	dir := filepath.Join(c.cfg.Services.Dir, s.Name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	var key [minPSK]byte
	if _, err := io.ReadFull(c.rand, key[:]); err != nil {
		return "", err
	}
	defer clear(key[:])
	path := filepath.Join(dir, "psk")
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return "", err
	}
	_, err = io.WriteString(f, base64.StdEncoding.EncodeToString(key[:])+"\n")
	if err == nil {
		err = f.Sync()
	}
	return path, errors.Join(err, f.Close())
}
