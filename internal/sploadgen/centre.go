package sploadgen

import (
	"bufio"
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"wardgate/internal/certs"
	"wardgate/sp/registry"
)

// Centre is a service provider's centre in processes of its own: wardgate-sp.
type Centre struct {
	Bin      string // the program
	Dir      string // its folder, which Init makes
	Database string // as in the configuration; empty: SQLite in Dir
	Env      []string

	config   string
	registry string // folder of the registry's files

	cmd   *exec.Cmd
	done  chan error
	mu    sync.Mutex // guards what follows
	addr  string
	last  string // line of the garbage collector
	lines []string
}

// keptLines of what the centre says are shown when it fails.
const keptLines = 30

// Init makes the centre's folder, for the devices of a scenario.
func (c *Centre) Init(ctx context.Context, s *Scenario) error {
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return err
	}
	anchors, cas := filepath.Join(c.Dir, "anchors.pem"), filepath.Join(c.Dir, "cas.pem")
	if err := errors.Join(
		os.WriteFile(anchors, certs.EncodePEM(s.CA.Anchor()), 0o600),
		os.WriteFile(cas, certs.EncodePEM(s.CA.Intermediates()...), 0o600),
	); err != nil {
		return err
	}
	dir := filepath.Join(c.Dir, "centre")
	c.registry, c.config = filepath.Join(c.Dir, "registry"), filepath.Join(dir, "wardgate-sp.toml")
	args := []string{"init", dir, "--issuer", "sp.example", "--host", "localhost", "--device-anchors", anchors, "--device-cas", cas, "--listen", "127.0.0.1:0"}
	for name, domain := range Services {
		args = append(args, "--service", name+"="+domain)
	}
	if _, err := c.run(ctx, args...); err != nil {
		return err
	}
	if c.Database == "" {
		return nil
	}
	text, err := os.ReadFile(c.config)
	if err != nil {
		return err
	}
	url := regexp.MustCompile(`(?m)^url = .*$`)
	if !url.Match(text) {
		return fmt.Errorf("%s: expected a line with the database's url, came none", c.config)
	}
	return os.WriteFile(c.config, url.ReplaceAllLiteral(text, []byte("url = "+strconv.Quote(c.Database))), 0o600)
}

// run runs one command to its end.
func (c *Centre) run(ctx context.Context, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, c.Bin, args...)
	var out, failure bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &failure
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("wardgate-sp %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(failure.Bytes()))
	}
	return out.Bytes(), nil
}

// Write writes the scenario's registry as files; those that are as they must be stay.
func (c *Centre) Write(s *Scenario) error {
	r, err := registry.New(s.Content)
	if err != nil {
		return err
	}
	for name, data := range r.Export() {
		path := filepath.Join(c.registry, filepath.FromSlash(name))
		if was, err := os.ReadFile(path); err == nil && bytes.Equal(was, data) {
			continue
		}
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, data, 0o600)); err != nil {
			return err
		}
	}
	list, err := filepath.Glob(filepath.Join(c.registry, "contracts", "*.toml"))
	if err != nil {
		return err
	}
	for _, path := range list {
		if r.Contract(strings.TrimSuffix(filepath.Base(path), ".toml")) == nil {
			if err := os.Remove(path); err != nil {
				return err
			}
		}
	}
	return nil
}

// Apply applies the files that Write wrote.
func (c *Centre) Apply(ctx context.Context) error {
	_, err := c.run(ctx, "--config", c.config, "apply", c.registry)
	return err
}

// Revoke revokes a device.
func (c *Centre) Revoke(ctx context.Context, device string) error {
	_, err := c.run(ctx, "--config", c.config, "device", "revoke", device)
	return err
}

// Start starts `wardgate-sp serve` and waits until it serves, at listen (127.0.0.1:0: any free port).
func (c *Centre) Start(ctx context.Context, listen string) error {
	text, err := os.ReadFile(c.config)
	if err != nil {
		return err
	}
	text = regexp.MustCompile(`(?m)^listen = .*$`).ReplaceAllLiteral(text, []byte("listen = "+strconv.Quote(listen)))
	if err := os.WriteFile(c.config, text, 0o600); err != nil {
		return err
	}
	c.cmd = exec.Command(c.Bin, "--config", c.config, "serve") //nolint:noctx // Stop ends it
	// The collector's lines say how much of the heap is in use.
	c.cmd.Env = append(append(os.Environ(), "GODEBUG=gctrace=1"), c.Env...)
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := c.cmd.StderrPipe()
	if err != nil {
		return err
	}
	if err := c.cmd.Start(); err != nil {
		return err
	}
	ready := make(chan struct{})
	c.done = make(chan error, 1)
	go func() {
		c.read(out, ready)
		c.done <- c.cmd.Wait()
	}()
	select {
	case <-ready:
		return nil
	case err := <-c.done:
		c.done <- err
		return fmt.Errorf("wardgate-sp serve ended: %w: %s", err, c.Said())
	case <-ctx.Done():
		return errors.Join(context.Cause(ctx), c.Kill())
	}
}

// read follows what the centre says.
func (c *Centre) read(out io.Reader, ready chan<- struct{}) {
	in := bufio.NewScanner(out)
	in.Buffer(nil, 1<<20)
	for in.Scan() {
		line := in.Text()
		var say struct{ Level, Msg, Devices string }
		_ = json.Unmarshal([]byte(line), &say) // lines of the runtime are not JSON
		c.mu.Lock()
		switch {
		case strings.HasPrefix(line, "gc "):
			c.last = line
		case say.Msg == "ready":
			c.addr = say.Devices
			close(ready)
		case say.Level != "INFO":
			c.lines = append(c.lines[max(0, len(c.lines)+1-keptLines):], line)
		}
		c.mu.Unlock()
	}
}

// Addr is where devices connect.
func (c *Centre) Addr() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.addr
}

// Said is what the centre complained of last.
func (c *Centre) Said() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return strings.Join(c.lines, "\n")
}

// Stop asks the centre to end, and waits for it.
func (c *Centre) Stop() error { return c.end(syscall.SIGTERM) }

// Kill ends the centre at once.
func (c *Centre) Kill() error {
	_ = c.end(syscall.SIGKILL) // it ends by the signal: that is no failure
	return nil
}

func (c *Centre) end(s syscall.Signal) error {
	if c.cmd == nil {
		return nil
	}
	err := c.cmd.Process.Signal(s)
	if errors.Is(err, os.ErrProcessDone) {
		err = nil
	}
	err = errors.Join(err, <-c.done)
	c.cmd = nil
	return err
}

// Pools reads what devices are configured with: the anchors of the server and of the policies' signer.
func (c *Centre) Pools() (roots *x509.CertPool, signers []*x509.Certificate, err error) {
	dir := filepath.Dir(c.config)
	web, err := os.ReadFile(filepath.Join(dir, "web-root.pem"))
	if err != nil {
		return nil, nil, err
	}
	pol, err := os.ReadFile(filepath.Join(dir, "policy-root.pem"))
	if err != nil {
		return nil, nil, err
	}
	roots = x509.NewCertPool()
	roots.AppendCertsFromPEM(web)
	signers, err = certs.ParseCertificates(pol)
	return roots, signers, err
}

// Usage is what a process has used.
type Usage struct {
	CPU      time.Duration // of all its threads, in user and system mode
	RSS, Max int64         // octets of memory resident now, and at the most
	Heap     int64         // octets that the collector found in use the last time
	Stacks   int64         // octets of goroutines' stacks, at the same time
	Threads  int
	Database int64 // octets of SQLite's files
	Written  int64 // octets that were given to the disk
}

var gcLine = regexp.MustCompile(`(\d+)->(\d+)->(\d+) MB, \d+ MB goal, (\d+) MB stacks`)

// Usage reads what the centre has used since it was started.
func (c *Centre) Usage() (Usage, error) {
	var u Usage
	proc := filepath.Join("/proc", strconv.Itoa(c.cmd.Process.Pid))
	status, err := os.ReadFile(filepath.Join(proc, "status"))
	if err != nil {
		return u, err
	}
	for line := range strings.SplitSeq(string(status), "\n") {
		key, rest, _ := strings.Cut(line, ":")
		f := strings.Fields(rest)
		if len(f) == 0 {
			continue
		}
		n, _ := strconv.ParseInt(f[0], 10, 64)
		switch key {
		case "VmRSS":
			u.RSS = n << 10
		case "VmHWM":
			u.Max = n << 10
		case "Threads":
			u.Threads = int(n)
		}
	}
	stat, err := os.ReadFile(filepath.Join(proc, "stat"))
	if err != nil {
		return u, err
	}
	// The name in parentheses may hold anything; utime and stime are fields 14 and 15, in ticks of 10 ms.
	f := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(f) < 13 {
		return u, fmt.Errorf("%s/stat: expected 50 fields, came %q", proc, stat)
	}
	for _, s := range f[11:13] {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			return u, err
		}
		u.CPU += time.Duration(n) * 10 * time.Millisecond
	}
	c.mu.Lock()
	m := gcLine.FindStringSubmatch(c.last)
	c.mu.Unlock()
	if m != nil {
		heap, _ := strconv.ParseInt(m[3], 10, 64)
		stacks, _ := strconv.ParseInt(m[4], 10, 64)
		u.Heap, u.Stacks = heap<<20, stacks<<20
	}
	if files, err := filepath.Glob(filepath.Join(filepath.Dir(c.config), "*.db*")); err == nil {
		for _, name := range files {
			if st, err := os.Stat(name); err == nil {
				u.Database += st.Size()
			}
		}
	}
	io, err := os.ReadFile(filepath.Join(proc, "io"))
	if err == nil { // not everybody may read it
		for line := range strings.SplitSeq(string(io), "\n") {
			if n, ok := strings.CutPrefix(line, "write_bytes: "); ok {
				u.Written, _ = strconv.ParseInt(n, 10, 64)
			}
		}
	}
	return u, nil
}
