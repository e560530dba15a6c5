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
	"time"

	"wardgate/internal/certs"
)

// A CA's folder: root.pem, ca.pem, cross.pem (optional), root.crl (of an offline root, optional),
// and where keys are files: root.key, ca.key (PKCS #8 PEM, mode 0600, in a folder of mode 0700).

// Save writes a new CA into a folder that does not exist yet; the keys only where they are
// software keys. The folder appears whole or not at all. Keys on a token are not written.
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
	if ca.RootCRL != nil {
		files["root.crl"] = pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: ca.RootCRL.Raw})
	}
	for name, key := range map[string]crypto.Signer{"root.key": ca.RootKey, "ca.key": ca.Key} {
		if key == nil {
			continue
		}
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			continue // a key that is not in software stays where it is
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

// OpenCA reads a CA from its folder. key is the issuing CA's where it lies on a token; nil: it is
// read from ca.key. The root's key is read where there is one.
func OpenCA(dir string, key crypto.Signer, now time.Time) (*CA, error) {
	ca := &CA{Key: key}
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
	if ca.Key == nil {
		if ca.Key, err = readKey(filepath.Join(dir, "ca.key")); err != nil {
			return nil, in("ca.key", err)
		}
	}
	if ca.RootKey, err = readKey(filepath.Join(dir, "root.key")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, in("root.key", err)
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
