package labca

import (
	"crypto"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"wardgate/internal/certs"
)

// An authority in a folder:
//
//	root.pem root.key   the root (anchor) and its key
//	ca.pem   ca.key     the issuing CA and its key; absent when the root issues itself
//	state.json          options, counter of revocation lists, record of what was issued
//
// Key files have mode 0600 and the folder 0700. Files are replaced as a whole (write, sync, rename).

type releaser struct{ f *os.File }

type state struct {
	Kind   Kind     `json:"kind"`
	Name   string   `json:"name"`
	Domain string   `json:"domain,omitempty"`
	CRLURL string   `json:"crl_url,omitempty"`
	CRLNo  int64    `json:"crl_number"`
	Issued []Issued `json:"issued"`
}

// Dir returns the folder of an authority below the folder of a laboratory.
func Dir(base string, kind Kind, name string) string {
	switch kind {
	case Device, Policy:
		return filepath.Join(base, string(kind))
	case Service:
	}
	return filepath.Join(base, "services", name)
}

// Create makes an authority in an empty or absent folder.
func Create(dir string, opt Options) (*Authority, error) {
	if _, err := os.Stat(filepath.Join(dir, "state.json")); err == nil {
		return nil, fmt.Errorf("creating an authority: expected an empty folder, %s has one already; use it or choose another folder", dir)
	}
	a, err := New(opt)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("creating an authority: %w", err)
	}
	if err := a.acquire(dir); err != nil {
		return nil, err
	}
	a.dir = dir
	write := func(name string, data []byte, mode fs.FileMode) {
		if err == nil {
			err = WriteFile(filepath.Join(dir, name), data, mode)
		}
	}
	keyPEM := func(k crypto.Signer) []byte {
		b, e := MarshalKey(k)
		if e != nil && err == nil {
			err = e
		}
		return b
	}
	write("root.key", keyPEM(a.rootK), 0o600)
	write("root.pem", certs.EncodePEM(a.root), 0o644)
	if a.ca != a.root {
		write("ca.key", keyPEM(a.caK), 0o600)
		write("ca.pem", certs.EncodePEM(a.ca), 0o644)
	}
	if err == nil {
		err = a.save()
	}
	if err != nil {
		a.Close()
		return nil, err
	}
	return a, nil
}

// Open opens the authority in a folder. Another process that has it open is waited for.
func Open(dir string) (*Authority, error) {
	a := &Authority{}
	if err := a.acquire(dir); err != nil {
		return nil, err
	}
	if err := a.load(dir); err != nil {
		a.Close()
		return nil, fmt.Errorf("authority in %s: %w", dir, err)
	}
	a.dir = dir
	return a, nil
}

func (a *Authority) load(dir string) error {
	b, err := os.ReadFile(filepath.Join(dir, "state.json"))
	if err != nil {
		return err
	}
	var s state
	if err := json.Unmarshal(b, &s); err != nil {
		return fmt.Errorf("state.json: %w", err)
	}
	a.opt = Options{Kind: s.Kind, Name: s.Name, Domain: s.Domain, CRLURL: s.CRLURL}
	a.issued, a.crlNo = s.Issued, s.CRLNo
	if a.root, a.rootK, err = pair(dir, "root"); err != nil {
		return err
	}
	a.ca, a.caK, err = pair(dir, "ca")
	if errors.Is(err, fs.ErrNotExist) {
		a.ca, a.caK, err = a.root, a.rootK, nil
		a.opt.Direct = true
	}
	return err
}

func pair(dir, name string) (*x509.Certificate, crypto.Signer, error) {
	b, err := os.ReadFile(filepath.Join(dir, name+".pem"))
	if err != nil {
		return nil, nil, err
	}
	list, err := certs.ParseCertificates(b)
	if err != nil {
		return nil, nil, fmt.Errorf("%s.pem: %w", name, err)
	}
	k, err := ReadKey(filepath.Join(dir, name+".key"))
	if err != nil {
		return nil, nil, err
	}
	if !certs.SamePublicKey(list[0].PublicKey, k.Public()) {
		return nil, nil, fmt.Errorf("%s.key is not the key of %s.pem", name, name)
	}
	return list[0], k, nil
}

// ReadKey reads a private key in PKCS #8 PEM.
func ReadKey(path string) (crypto.Signer, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(b)
	if block == nil || block.Type != "PRIVATE KEY" {
		return nil, fmt.Errorf("%s: expected a PEM block PRIVATE KEY (PKCS #8)", path)
	}
	k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	s, ok := k.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("%s: expected a key that signs, got %T", path, k)
	}
	return s, nil
}

// MarshalKey encodes a software key as PKCS #8 PEM.
func MarshalKey(k crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

func (a *Authority) save() error {
	if a.dir == "" {
		return nil
	}
	b, err := json.MarshalIndent(state{a.opt.Kind, a.opt.Name, a.opt.Domain, a.opt.CRLURL, a.crlNo, a.issued}, "", "  ")
	if err != nil {
		return err
	}
	return WriteFile(filepath.Join(a.dir, "state.json"), append(b, '\n'), 0o600)
}

func (a *Authority) acquire(dir string) error {
	f, err := os.OpenFile(filepath.Join(dir, ".lock"), os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return fmt.Errorf("authority in %s: %w; make it with `wardgate lab-ca init`", dir, err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		f.Close()
		return fmt.Errorf("locking %s: %w", f.Name(), err)
	}
	a.lock.f = f
	return nil
}

// Close lets other processes use the authority's folder.
func (a *Authority) Close() {
	if a.lock.f != nil {
		_ = a.lock.f.Close() // gives the lock back
		a.lock.f = nil
	}
}

// WriteFile replaces a file as a whole: written beside it, synced, renamed.
func WriteFile(path string, data []byte, mode fs.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Chmod(mode)
	}
	if err == nil {
		err = f.Sync()
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
	return err
}

// EncodeCRLs returns revocation lists as PEM blocks.
func EncodeCRLs(lists []*x509.RevocationList) []byte {
	var out []byte
	for _, l := range lists {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: l.Raw})...)
	}
	return out
}

// Lab is the set of authorities of a laboratory below one folder, or in memory.
type Lab struct {
	Device   *Authority
	Policy   *Authority
	Services map[string]*Authority
}

// NewLab makes a laboratory: the device CA (domain devices.example), the policy signers' CA
// (policy.example) and one CA for each service (SERVICE.example). dir empty: in memory.
func NewLab(dir string, key KeyType, at time.Time, services ...string) (*Lab, error) {
	one := func(k Kind, name, domain string) (*Authority, error) {
		o := Options{Kind: k, Name: name, Domain: domain, Key: key, At: at}
		if dir == "" {
			return New(o)
		}
		return Create(Dir(dir, k, name), o)
	}
	l := &Lab{Services: map[string]*Authority{}}
	var err error
	if l.Device, err = one(Device, "device", "devices.example"); err != nil {
		return nil, err
	}
	if l.Policy, err = one(Policy, "policy", "policy.example"); err != nil {
		return nil, err
	}
	for _, s := range services {
		if l.Services[s], err = one(Service, s, s+".example"); err != nil {
			return nil, err
		}
	}
	return l, nil
}
