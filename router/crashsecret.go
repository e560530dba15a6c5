package router

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

const (
	crashSecretFile = "crash-secret" // ike.Config.CrashSecret
	crashSecretSize = 32             // octets
)

// crashSecret returns the secret by which peers find out at once that this router has restarted, and
// makes it at the first start. One that was damaged is replaced: peers then find out as they would
// without.
func crashSecret(dir string) ([]byte, error) {
	path := filepath.Join(dir, crashSecretFile)
	b, err := os.ReadFile(path)
	if err == nil && len(b) == crashSecretSize {
		return b, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("the secret of crash detection: %w", err)
	}
	b = make([]byte, crashSecretSize)
	if _, err := rand.Read(b); err != nil {
		return nil, fmt.Errorf("the secret of crash detection: %w", err)
	}
	if err := writeFile(path, b, 0o600); err != nil {
		return nil, fmt.Errorf("the secret of crash detection: %w", err)
	}
	return b, nil
}
