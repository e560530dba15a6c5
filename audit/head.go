package audit

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// The head file lies beside the log and says which record was the last that was forced to the
// disk. A chain alone does not show that its end was cut off; together with the head it does. It
// is written after the record is on the disk and is not forced there itself: after a power loss it
// may be behind the log, never ahead of it.

func headPath(path string) string { return path + ".head" }

// head is a sequence number of 20 digits, a space, 64 hex digits and a newline: of one size, so
// that it is overwritten in place.
type head struct {
	seq  uint64
	hash string
}

func openHead(path string) (*os.File, error) {
	f, err := os.OpenFile(headPath(path), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("audit: %w", err)
	}
	return f, syncDir(path)
}

func writeHead(f *os.File, h head) error {
	if _, err := f.WriteAt(fmt.Appendf(nil, "%020d %s\n", h.seq, h.hash), 0); err != nil {
		return fmt.Errorf("audit: note the last record: %w", err)
	}
	return nil
}

// readHead reads the head file; ok is false where there is none that can be read.
func readHead(path string) (h head, ok bool) {
	b, err := os.ReadFile(headPath(path))
	if err != nil {
		return h, false
	}
	seq, hash, found := strings.Cut(strings.TrimSuffix(string(b), "\n"), " ")
	h.hash = hash
	h.seq, err = strconv.ParseUint(seq, 10, 64)
	return h, found && err == nil && len(hash) == hashDigits
}

// A half-written last line is kept in a file of its own from before it is cut off until it is
// reported.

func fragmentPath(path string) string { return path + ".fragment" }

func keepFragment(path string, line []byte) error {
	f, err := os.OpenFile(fragmentPath(path), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("audit: keep the half-written line: %w", err)
	}
	_, err = f.Write(line)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("audit: keep the half-written line: %w", err)
	}
	return syncDir(path)
}

func readFragment(path string) ([]byte, error) {
	b, err := os.ReadFile(fragmentPath(path))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return b, err
}

func dropFragment(path string) error {
	if err := os.Remove(fragmentPath(path)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("audit: %w", err)
	}
	return nil
}

// syncDir forces the names in the log's directory to the disk.
func syncDir(path string) error {
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("audit: force %s to the disk: %w", filepath.Dir(path), err)
	}
	return nil
}
