package issue

import (
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"wardgate/internal/certs"
)

// A CA's folder, of mode 0700:
//
//	root.pem, ca.pem     the certificates
//	between.pem          an upstream issuer's CAs between the two
//	cross.pem            towards the CAs before it, and back
//	ca.key, root.key     keys in files: PKCS #8 PEM, mode 0600
//	ca.uri, root.uri     keys on a token: what names them (RFC 7512)
//	root.crl             the list of a root whose key is elsewhere
//	from                 when it begins to issue (RFC 3339)

// Reference is a key that is not in a file: it says in one line where it is (RFC 7512).
type Reference interface {
	crypto.Signer
	Reference() string
}

// Keys finds the key that a line of ca.uri or root.uri names. public is what the certificate says.
type Keys func(reference string, public crypto.PublicKey) (crypto.Signer, error)

// Save writes a new CA into a folder that does not exist yet: software keys as files, and of a
// [Reference] what it says. The folder appears whole or not at all.
func (ca *CA) Save(dir string) error {
	if _, err := os.Lstat(dir); err == nil {
		return fmt.Errorf("folder for the CA: %s exists already: %w", dir, fs.ErrExist)
	}
	tmp, err := os.MkdirTemp(filepath.Dir(dir), "."+filepath.Base(dir)+"-*") // mode 0700
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	files := map[string][]byte{"root.pem": certs.EncodePEM(ca.Root), "ca.pem": certs.EncodePEM(ca.Cert)}
	if len(ca.Cross) > 0 {
		files["cross.pem"] = certs.EncodePEM(ca.Cross...)
	}
	if len(ca.Between) > 0 {
		files["between.pem"] = certs.EncodePEM(ca.Between...)
	}
	if !ca.From.IsZero() {
		files["from"] = []byte(ca.From.UTC().Format(time.RFC3339) + "\n")
	}
	if ca.RootCRL != nil {
		files["root.crl"] = pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: ca.RootCRL.Raw})
	}
	for name, key := range map[string]crypto.Signer{"root.key": ca.RootKey, "ca.key": ca.Key} {
		if key == nil {
			continue
		}
		if r, ok := key.(Reference); ok {
			files[strings.TrimSuffix(name, ".key")+".uri"] = []byte(r.Reference() + "\n")
			continue
		}
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			return fmt.Errorf("%s: expected a key in software, or one that says where it is, got %T", name, key)
		}
		files[name] = pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	}
	for name, data := range files {
		if err := writeSynced(filepath.Join(tmp, name), data); err != nil {
			return err
		}
	}
	if err := syncDir(tmp); err != nil {
		return err
	}
	if err := os.Rename(tmp, dir); err != nil {
		return err
	}
	return syncDir(filepath.Dir(dir))
}

func writeSynced(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if e := f.Close(); err == nil {
		err = e
	}
	return err
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// OpenCA reads a CA from its folder. Keys that are not files are asked of keys, which may be nil where
// there are none. The root's key is read where there is one. A CA that is over is ErrCAEnded.
func OpenCA(dir string, keys Keys, now time.Time) (*CA, error) {
	ca := &CA{}
	in := func(name string, err error) error { return fmt.Errorf("CA in %s: %s: %w", dir, name, err) }
	one := func(name string) (*x509.Certificate, error) {
		list, err := readCerts(filepath.Join(dir, name))
		if err != nil {
			return nil, in(name, err)
		}
		if len(list) != 1 {
			return nil, in(name, fmt.Errorf("expected one certificate, got %d", len(list)))
		}
		return list[0], nil
	}
	var err error
	if ca.Root, err = one("root.pem"); err != nil {
		return nil, err
	}
	if ca.Cert, err = one("ca.pem"); err != nil {
		return nil, err
	}
	if ca.Cross, err = readCerts(filepath.Join(dir, "cross.pem")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, in("cross.pem", err)
	}
	if ca.Between, err = readCerts(filepath.Join(dir, "between.pem")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, in("between.pem", err)
	}
	if ca.Key, err = FindKey(dir, "ca", keys, ca.Cert.PublicKey); err != nil {
		return nil, in("the issuing CA's key", err)
	}
	if ca.RootKey, err = FindKey(dir, "root", keys, ca.Root.PublicKey); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, in("the root's key", err)
	}
	switch b, err := os.ReadFile(filepath.Join(dir, "from")); {
	case err == nil:
		if ca.From, err = time.Parse(time.RFC3339, strings.TrimSpace(string(b))); err != nil {
			return nil, in("from", fmt.Errorf("expected a time such as 2026-11-22T16:00:00Z, got %s", certs.Quote(string(b))))
		}
	case !errors.Is(err, fs.ErrNotExist):
		return nil, in("from", err)
	}
	switch b, err := os.ReadFile(filepath.Join(dir, "root.crl")); {
	case err == nil:
		lists, err := certs.ParseCRLs(b)
		if err != nil {
			return nil, in("root.crl", err)
		}
		if err := ca.AddRootCRL(lists[0]); err != nil {
			return nil, in("root.crl", err)
		}
	case !errors.Is(err, fs.ErrNotExist):
		return nil, in("root.crl", err)
	}
	if err := ca.Check(now); err != nil {
		return nil, fmt.Errorf("CA in %s: %w", dir, err)
	}
	return ca, nil
}

// FindKey finds the key NAME of a folder: NAME.key is a file with the key, NAME.uri says which one it is
// on the token. fs.ErrNotExist: there is neither.
func FindKey(dir, name string, keys Keys, public crypto.PublicKey) (crypto.Signer, error) {
	line, err := os.ReadFile(filepath.Join(dir, name+".uri"))
	if errors.Is(err, fs.ErrNotExist) {
		k, err := readKey(filepath.Join(dir, name+".key"))
		if err != nil {
			return nil, fmt.Errorf("%s.key: %w", name, err)
		}
		return k, nil
	}
	if err != nil {
		return nil, err
	}
	if _, err := os.Lstat(filepath.Join(dir, name+".key")); err == nil {
		return nil, fmt.Errorf("expected %s.key or %s.uri, got both; remove the one that is wrong", name, name)
	}
	if keys == nil {
		return nil, fmt.Errorf("%s.uri: expected a token to find the key on, got none; set [token]", name)
	}
	return keys(strings.TrimSpace(string(line)), public)
}

func readCerts(path string) ([]*x509.Certificate, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return certs.ParseCertificates(b)
}

// readKey reads a private key that nobody but its owner can read.
func readKey(path string) (crypto.Signer, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if st.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("expected a file that only its owner can read, got mode %04o; chmod 600, and consider the key disclosed", st.Mode().Perm())
	}
	b := make([]byte, min(st.Size(), 64<<10))
	n, err := f.Read(b)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(b[:n])
	clear(b)
	if block == nil || block.Type != "PRIVATE KEY" {
		return nil, errors.New("expected a PEM block PRIVATE KEY (PKCS #8), got something else")
	}
	k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	clear(block.Bytes)
	if err != nil {
		return nil, err
	}
	s, ok := k.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("expected a key that signs, got %T", k)
	}
	return s, nil
}
