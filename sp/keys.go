package sp

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"

	"wardgate/internal/certs"
)

// readSigner reads the certificates of a key, leaf first, and the key: from a file that nobody but its
// owner can read, or it finds it on the token. A token that is away is no error here, but it is logged.
func (c *Centre) readSigner(ctx context.Context, keyFile, certFile string) (crypto.Signer, []*x509.Certificate, error) {
	chain, err := readCertificates(certFile)
	if err != nil {
		return nil, nil, err
	}
	if isReference(keyFile) {
		key, err := c.keyOnToken(ctx, keyFile, chain[0].PublicKey)
		return key, chain, err
	}
	key, err := readKey(keyFile)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", keyFile, err)
	}
	if !certs.SamePublicKey(chain[0].PublicKey, key.Public()) {
		return nil, nil, fmt.Errorf("expected the key of %s, came another one in %s; the file's first certificate must be the key's", certFile, keyFile)
	}
	return key, chain, nil
}

// keyOnToken finds a key on the token, where the token is there.
func (c *Centre) keyOnToken(ctx context.Context, line string, public crypto.PublicKey) (crypto.Signer, error) {
	key, err := c.token.signer(line, public)
	if err != nil {
		return nil, err
	}
	away, err := key.check(ctx)
	if err != nil {
		return nil, err
	}
	if away != nil {
		c.log.Error("a key cannot be used yet; nothing that it signs can be made until the token is there", "error", away)
	}
	return key, nil
}

func readKey(path string) (crypto.Signer, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if st.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("expected a file that only its owner can read, came mode %04o; chmod 600, and consider the key disclosed", st.Mode().Perm())
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	defer clear(data)
	block, _ := pem.Decode(data)
	if block == nil || block.Type != "PRIVATE KEY" {
		return nil, errors.New("expected a PEM block PRIVATE KEY (PKCS #8), came something else")
	}
	defer clear(block.Bytes)
	k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	s, ok := k.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("expected a key that signs, came %T", k)
	}
	return s, nil
}

func readCertificates(path string) ([]*x509.Certificate, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	list, err := certs.ParseCertificates(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return list, nil
}

func readAll(paths []string) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	for _, p := range paths {
		list, err := readCertificates(p)
		if err != nil {
			return nil, err
		}
		out = append(out, list...)
	}
	return out, nil
}

func readCRLs(paths []string) ([]*x509.RevocationList, error) {
	var out []*x509.RevocationList
	for _, p := range paths {
		data, err := os.ReadFile(p)
		if err != nil {
			return nil, err
		}
		list, err := certs.ParseCRLs(data)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", p, err)
		}
		out = append(out, list...)
	}
	return out, nil
}

func encodeCRL(l *x509.RevocationList) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: l.Raw}))
}
