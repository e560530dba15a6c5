package sp

import (
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
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"wardgate/internal/certs"
	"wardgate/policy"
	"wardgate/sp/issue"
	"wardgate/sp/registry"
)

// InitOptions say how a centre's folder is made.
type InitOptions struct {
	Issuer        string            // who makes the policies; a DNS name
	Organization  string            // in subjects of CAs; may be empty
	Hosts         []string          // names and addresses of the server; empty: Issuer
	DeviceAnchors []byte            // PEM: roots of device certificates
	DeviceCAs     []byte            // PEM: issuing CAs below them; may be empty
	Services      map[string]string // name to DNS domain: services whose CA is made
	Listen        string            // as in the configuration; empty: its default
	Status        string
	StatusURL     string
}

// Init makes a folder with everything that a small centre or a laboratory needs: the configuration, keys
// and certificates in files, an SQLite database to be. The folder appears whole or not at all.
// Production keeps the keys of CAs and of the policy signer on tokens.
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
	if err := fill(tmp, o, now, rand); err != nil {
		return err
	}
	return os.Rename(tmp, dir)
}

func fill(dir string, o InitOptions, now time.Time, rand io.Reader) error {
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
	for _, k := range []struct {
		name, title string
		leaf        *x509.Certificate
	}{{"web", "Server", web}, {"policy", "Policy", pol}} {
		k.leaf.Subject = pkix.Name{CommonName: o.Issuer}
		if err := makePair(dir, k.name, o.Organization, k.title, k.leaf, now, rand); err != nil {
			return err
		}
	}
	config := configText(o)
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
		if _, err := makeCA(filepath.Join(dir, "services"), o.Organization, name, domain, "", now, rand); err != nil {
			return err
		}
	}
	return nil
}

func configText(o InitOptions) string {
	var b strings.Builder
	line := func(key, value string) {
		if value != "" {
			fmt.Fprintf(&b, "%s = %q\n", key, value)
		}
	}
	line("issuer", o.Issuer)
	b.WriteString("\n[database]\n")
	line("url", "sqlite:centre.db")
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
	line("key", "policy.key")
	line("certificate", "policy.pem")
	return b.String()
}

// makePair makes a root and a certificate below it: NAME-root.pem, NAME-root.key, NAME.pem, NAME.key.
func makePair(dir, name, org, title string, leaf *x509.Certificate, now time.Time, rand io.Reader) error {
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
	rootKey, err := ecdsa.GenerateKey(elliptic.P256(), rand)
	if err != nil {
		return err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand)
	if err != nil {
		return err
	}
	if root, err = certify(root, root, rootKey.Public(), rootKey, rand); err != nil {
		return err
	}
	if leaf, err = certify(leaf, root, key.Public(), rootKey, rand); err != nil {
		return err
	}
	for file, c := range map[string]*x509.Certificate{name + "-root.pem": root, name + ".pem": leaf} {
		if err := os.WriteFile(filepath.Join(dir, file), certs.EncodePEM(c), 0o600); err != nil {
			return err
		}
	}
	for file, k := range map[string]crypto.Signer{name + "-root.key": rootKey, name + ".key": key} {
		der, err := x509.MarshalPKCS8PrivateKey(k)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, file), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600); err != nil {
			return err
		}
	}
	return nil
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

// makeCA makes a service's next CA in its folder, cross-signed with the one before, and returns its folder.
func makeCA(dir, org, service, domain, crlURL string, now time.Time, rand io.Reader) (string, error) {
	if !registry.ValidName(service) {
		return "", fmt.Errorf("service: expected a name of the registry's form, came %s", certs.Quote(service))
	}
	if !registry.ValidDNSName(domain) {
		return "", fmt.Errorf("domain of service %s: expected a DNS name of at least two labels, came %s", service, certs.Quote(domain))
	}
	own := filepath.Join(dir, service)
	numbers, err := generations(own)
	if err != nil {
		return "", err
	}
	ca, err := issue.NewCA(issue.CAOptions{Service: service, Organization: org, Domain: domain, NotBefore: now.Add(-time.Hour), CRLURL: crlURL, Rand: rand})
	if err != nil {
		return "", err
	}
	next := 1
	if len(numbers) > 0 {
		next = numbers[0] + 1
		old, err := issue.OpenCA(filepath.Join(own, strconv.Itoa(numbers[0])), nil, now)
		if err != nil {
			return "", err
		}
		if ca, err = issue.CrossSign(rand, old, ca, now); err != nil {
			return "", err
		}
	} else if err := os.MkdirAll(own, 0o700); err != nil {
		return "", err
	}
	out := filepath.Join(own, strconv.Itoa(next))
	return out, ca.Save(out)
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
		return makeCA(c.cfg.Services.Dir, "", s.Name, s.Domain, "", c.now(), c.rand)
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
