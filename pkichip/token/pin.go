package token

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"wardgate/pkichip/chipproto"
)

// PIN is where the PIN comes from. The PIN itself is held in memory that is locked, left out of
// core dumps and wiped after use.
type PIN struct {
	File       string
	Credential string // name in $CREDENTIALS_DIRECTORY
	Env        string
	typed      *secret // handed over by the command line
	officer    *secret // the security officer's
	kept       *secret // read before the process gave its rights up
	keptMark   string
}

// maxPIN is the length of the longest PIN, in octets (CK_TOKEN_INFO has up to 255 in practice).
const maxPIN = 255

// secret is a PIN in a page of its own.
type secret struct {
	page []byte
	n    int
}

func newSecret() (*secret, error) {
	p, err := unix.Mmap(-1, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("memory for the PIN: %w", err)
	}
	// Without the right to lock memory the PIN may be swapped out; it is still wiped.
	_ = unix.Mlock(p)
	_ = unix.Madvise(p, unix.MADV_DONTDUMP)
	s := &secret{page: p}
	runtime.SetFinalizer(s, (*secret).wipe)
	return s, nil
}

// wipe clears and gives back the page. It may be called twice.
func (s *secret) wipe() {
	if s == nil || s.page == nil {
		return
	}
	clear(s.page)
	_ = unix.Munmap(s.page)
	s.page, s.n = nil, 0
	runtime.SetFinalizer(s, nil)
}

// use hands the PIN to f as a string that shares the page: nothing of it stays in Go's memory.
// (miekg/pkcs11 makes a C copy for the call; the process cannot be dumped or traced.)
func (s *secret) use(f func(pin string) error) error {
	err := f(unsafe.String(unsafe.SliceData(s.page), s.n))
	runtime.KeepAlive(s)
	return err
}

// String keeps a PIN out of logs.
func (s *secret) String() string { return "[PIN]" }

// GoString keeps a PIN out of logs.
func (s *secret) GoString() string { return "[PIN]" }

// ReadPipe takes the PINs that the command line hands over: each with a length octet, the user's,
// then the security officer's.
func (p *PIN) ReadPipe(r io.Reader) error {
	for _, dst := range []**secret{&p.typed, &p.officer} {
		var n [1]byte
		if _, err := io.ReadFull(r, n[:]); err != nil {
			return fmt.Errorf("PIN pipe: %w", err)
		}
		s, err := newSecret()
		if err != nil {
			return err
		}
		if _, err := io.ReadFull(r, s.page[:n[0]]); err != nil {
			s.wipe()
			return fmt.Errorf("PIN pipe: %w", err)
		}
		if s.n = int(n[0]); s.n == 0 {
			s.wipe()
			continue
		}
		*dst = s
	}
	return nil
}

// none reports whether no PIN was asked to be used.
func (p *PIN) none() bool {
	return p.File == "" && p.Credential == "" && p.Env == "" && p.typed == nil
}

// attended reports whether a person gave the PIN: then the last try may be spent.
func (p *PIN) attended() bool { return p.typed != nil }

// Keep reads the PIN now and keeps it, because the process is about to lose the right to read it.
func (p *PIN) Keep() error {
	if p.none() || p.typed != nil {
		return nil
	}
	s, mark, err := p.read()
	if err != nil {
		return err
	}
	p.kept, p.keptMark = s, mark
	return nil
}

// mark names the state of the source, without the PIN having part in it.
func (p *PIN) mark() (string, error) {
	switch {
	case p.typed != nil:
		return "typed", nil
	case p.kept != nil:
		return p.keptMark, nil
	case p.Env != "":
		return "env:" + p.Env, nil
	case p.none():
		return "", nil
	}
	path, err := p.path()
	if err != nil {
		return "", err
	}
	fi, err := os.Stat(path)
	if err != nil {
		return "", source(err.Error(), "check [token] pin_file")
	}
	return chipproto.FileMark(fi), nil
}

// with hands the PIN to f and wipes it.
func (p *PIN) with(f func(pin string) error) error {
	switch {
	case p.typed != nil:
		return p.typed.use(f)
	case p.kept != nil:
		return p.kept.use(f)
	}
	s, _, err := p.read()
	if err != nil {
		return err
	}
	defer s.wipe()
	return s.use(f)
}

func source(text, do string) *Error {
	return fail(chipproto.CodePINSource, "the PIN cannot be read: "+text, do)
}

func (p *PIN) path() (string, error) {
	if p.File != "" {
		return p.File, nil
	}
	dir := os.Getenv("CREDENTIALS_DIRECTORY")
	if dir == "" {
		return "", source("there is no $CREDENTIALS_DIRECTORY", "add LoadCredential="+p.Credential+":… to the unit, or use pin_file")
	}
	if p.Credential != filepath.Base(p.Credential) || strings.HasPrefix(p.Credential, ".") {
		return "", source("expected the name of a credential, got a path", "correct pin_credential")
	}
	return filepath.Join(dir, p.Credential), nil
}

func (p *PIN) read() (_ *secret, mark string, err error) {
	s, err := newSecret()
	if err != nil {
		return nil, "", err
	}
	defer func() {
		if err != nil {
			s.wipe()
		}
	}()
	if p.Env != "" {
		v, ok := os.LookupEnv(p.Env)
		if !ok || v == "" || len(v) > maxPIN {
			return nil, "", source(fmt.Sprintf("the environment variable %s is not set, empty or too long", p.Env), "set it, or better use pin_file")
		}
		s.n = copy(s.page, v)
		return s, "env:" + p.Env, nil
	}
	path, err := p.path()
	if err != nil {
		return nil, "", err
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, "", source(err.Error(), "check [token] pin_file and its permissions")
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, "", source(err.Error(), "check [token] pin_file")
	}
	if err := checkMode(path, fi, p.File != ""); err != nil {
		return nil, "", err
	}
	n, err := io.ReadFull(f, s.page[:maxPIN+3])
	if err == nil {
		return nil, "", source(fmt.Sprintf("%s is longer than %d octets", path, maxPIN), "put the PIN alone into the file, on one line")
	}
	if !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, "", source(err.Error(), "check [token] pin_file")
	}
	line := bytes.TrimRight(s.page[:n], "\r\n")
	if len(line) == 0 || len(line) > maxPIN || bytes.ContainsAny(line, "\r\n\x00") {
		return nil, "", source(fmt.Sprintf("%s is empty, too long or has several lines", path), "put the PIN alone into the file, on one line")
	}
	clear(s.page[len(line):])
	s.n = len(line)
	return s, chipproto.FileMark(fi), nil
}

// checkMode refuses a PIN file that others can read. systemd protects its credentials itself (a
// folder of their own, access lists that show up as group bits), so there only "others" counts.
func checkMode(path string, fi os.FileInfo, strict bool) error {
	if !fi.Mode().IsRegular() {
		return source(path+" is no regular file", "put the PIN into a file of its own")
	}
	bad := os.FileMode(0o007)
	if strict {
		bad = 0o077
	}
	if fi.Mode().Perm()&bad != 0 {
		return source(fmt.Sprintf("others may read %s (mode %#o)", path, fi.Mode().Perm()), "chmod 600 the file, and change the PIN if somebody may have seen it")
	}
	if st, ok := fi.Sys().(*syscall.Stat_t); ok && strict && st.Uid != 0 && int(st.Uid) != os.Geteuid() {
		return source(fmt.Sprintf("%s belongs to user %d", path, st.Uid), "chown the file to root or to the user of the chip process")
	}
	return nil
}
