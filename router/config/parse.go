package config

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"
)

// ErrConfig is the class of errors in the content of a configuration file.
var ErrConfig = errors.New("configuration refused")

// maxSize bounds the file, which is a page of text.
const maxSize = 1 << 20

// file is the configuration as it is written: pointers tell what was left out.
type file struct {
	Daemon  fileDaemon  `toml:"daemon"`
	Control fileControl `toml:"control"`
	Token   fileToken   `toml:"token"`
	Policy  filePolicy  `toml:"policy"`
	SP      fileSP      `toml:"sp"`
	Network fileNetwork `toml:"network"`
	Audit   fileAudit   `toml:"audit"`
	Limits  fileLimits  `toml:"limits"`
}

type fileDaemon struct {
	StateDir  *string `toml:"state_dir"`
	RunDir    *string `toml:"run_dir"`
	LogLevel  *string `toml:"log_level"`
	LogFormat *string `toml:"log_format"`
}

type fileControl struct {
	Socket *string `toml:"socket"`
	Group  *string `toml:"group"`
}

type fileToken struct {
	Module        *string `toml:"module"`
	Label         *string `toml:"label"`
	PINFile       *string `toml:"pin_file"`
	PINCredential *string `toml:"pin_credential"`
	PINEnv        *string `toml:"pin_env"`
	Chip          *string `toml:"chip"`
	User          *string `toml:"user"`
}

type filePolicy struct {
	File    *string  `toml:"file"`
	Anchors []string `toml:"anchors"`
	CRLs    []string `toml:"crls"`
}

type fileSP struct {
	URL     *string  `toml:"url"`
	Anchors []string `toml:"anchors"`
}

type fileNetwork struct {
	TUN          *string  `toml:"tun"`
	Queues       *int64   `toml:"queues"`
	MTU          *int64   `toml:"mtu"`
	Listen       []string `toml:"listen"`
	IKEPort      *int64   `toml:"ike_port"`
	NATTPort     *int64   `toml:"natt_port"`
	ForceEncap   *bool    `toml:"force_encap"`
	TCP          *string  `toml:"tcp"`
	TCPPort      *int64   `toml:"tcp_port"`
	RouteTable   *int64   `toml:"route_table"`
	RulePriority *int64   `toml:"rule_priority"`
	Mark         *int64   `toml:"mark"`
	NFLogGroup   *int64   `toml:"nflog_group"`
}

type fileAudit struct {
	File *string `toml:"file"`
}

type fileLimits struct {
	HeldPackets      *int64  `toml:"held_packets"`
	HeldBytes        *int64  `toml:"held_bytes"`
	HeldFor          *string `toml:"held_for"`
	Flows            *int64  `toml:"flows"`
	HalfOpen         *int64  `toml:"half_open"`
	CookieThreshold  *int64  `toml:"cookie_threshold"`
	PuzzleThreshold  *int64  `toml:"puzzle_threshold"`
	PuzzleDifficulty *int64  `toml:"puzzle_difficulty"`
	PuzzleMaximum    *int64  `toml:"puzzle_maximum"`
	PuzzleSolve      *int64  `toml:"puzzle_solve"`
	TCPConnections   *int64  `toml:"tcp_connections"`
	RefusalsPerSec   *int64  `toml:"refusals_per_second"`
	ShutdownDeadline *string `toml:"shutdown_deadline"`
}

func load(path string) (*Config, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading the configuration: %w", err)
	}
	return parse(path, data)
}

func parse(name string, data []byte) (*Config, error) {
	if len(data) > maxSize {
		return nil, fmt.Errorf("%w: %s has %d bytes, expected at most %d", ErrConfig, name, len(data), maxSize)
	}
	var f file
	err := toml.NewDecoder(bytes.NewReader(data)).DisallowUnknownFields().Decode(&f)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrConfig, explain(name, err))
	}
	c := &checker{name: name, where: positions(data)}
	cfg := c.check(&f)
	if len(c.errs) > 0 {
		return nil, fmt.Errorf("%w: %w", ErrConfig, errors.Join(c.errs...))
	}
	return cfg, nil
}

// explain turns the decoder's errors into "file:line:column: what".
func explain(name string, err error) error {
	var strict *toml.StrictMissingError
	if errors.As(err, &strict) {
		var errs []error
		for i := range strict.Errors {
			d := &strict.Errors[i]
			row, col := d.Position()
			errs = append(errs, fmt.Errorf("%s:%d:%d: unknown key %q%s", name, row, col, dotted(d.Key()), suggest(d.Key())))
		}
		return errors.Join(errs...)
	}
	var dec *toml.DecodeError
	if errors.As(err, &dec) {
		row, col := dec.Position()
		what := strings.TrimPrefix(dec.Error(), "toml: ")
		if key := dotted(dec.Key()); key != "" && !strings.Contains(what, key) {
			what = fmt.Sprintf("%s (key %q)", what, key)
		}
		return fmt.Errorf("%s:%d:%d: %s", name, row, col, what)
	}
	return fmt.Errorf("%s: %w", name, err)
}

func dotted(key toml.Key) string { return strings.Join(key, ".") }

// suggest names the existing key that is nearest to an unknown one.
func suggest(key toml.Key) string {
	have := dotted(key)
	if have == "" {
		return ""
	}
	best, dist := "", 1<<30
	for _, k := range Keys() {
		d := distance(have, k)
		// A right key in the wrong section is nearer than the letters say.
		if last := k[strings.LastIndexByte(k, '.')+1:]; last == key[len(key)-1] {
			d = min(d, 2)
		}
		if d < dist {
			best, dist = k, d
		}
	}
	for _, s := range sections() {
		if d := distance(have, s); d < dist {
			best, dist = s, d
		}
	}
	if dist <= max(2, len(have)/3) {
		return fmt.Sprintf("; did you mean %q?", best)
	}
	return "; docs/wardgated.toml lists all keys"
}

// distance is the Levenshtein distance, in bytes, of strings cut to a sane length.
func distance(a, b string) int {
	a, b = a[:min(len(a), 64)], b[:min(len(b), 64)]
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diag := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diag, row[j+1] = row[j+1], min(row[j+1]+1, row[j]+1, diag+cost)
		}
	}
	return row[len(b)]
}

func sections() []string {
	var out []string
	for i := range reflect.TypeFor[file]().NumField() {
		out = append(out, reflect.TypeFor[file]().Field(i).Tag.Get("toml"))
	}
	return out
}

// Keys lists all keys as "section.key".
func Keys() []string {
	var out []string
	for i := range reflect.TypeFor[file]().NumField() {
		s := reflect.TypeFor[file]().Field(i)
		for j := range s.Type.NumField() {
			out = append(out, s.Tag.Get("toml")+"."+s.Type.Field(j).Tag.Get("toml"))
		}
	}
	return out
}

// checker collects everything that is wrong.
type checker struct {
	name  string
	where map[string]int // line of a key
	errs  []error
}

func (c *checker) bad(key, format string, args ...any) {
	at := c.name
	if line := c.where[key]; line > 0 {
		at = fmt.Sprintf("%s:%d", c.name, line)
	}
	c.errs = append(c.errs, fmt.Errorf("%s: %s: %s", at, key, fmt.Sprintf(format, args...)))
}

// integer is a number type of the finished configuration.
type integer interface{ ~int | ~uint16 | ~uint32 }

func number[T integer](c *checker, key string, v *int64, def T, lo, hi int64) T {
	if v == nil {
		return def
	}
	if *v < lo || *v > hi {
		c.bad(key, "%d is out of range: expected %d to %d", *v, lo, hi)
		return def
	}
	return T(*v)
}

func (c *checker) text(key string, v *string, def string) string {
	if v == nil {
		return def
	}
	if strings.TrimSpace(*v) == "" {
		c.bad(key, "is empty: expected a value, or leave the key out")
	}
	if strings.ContainsFunc(*v, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		c.bad(key, "%q holds a control character", *v)
	}
	return *v
}

func (c *checker) path(key string, v *string, def string) string {
	s := c.text(key, v, def)
	if s != "" && !filepath.IsAbs(s) {
		c.bad(key, "%q is a relative path: expected one that begins with /", s)
	}
	if s == "" {
		return ""
	}
	return filepath.Clean(s)
}

func (c *checker) paths(key string, v []string) []string {
	var out []string
	for _, p := range v {
		out = append(out, c.path(key, &p, ""))
	}
	return out
}

func (c *checker) oneOf(key string, v *string, def string, allowed ...string) string {
	s := c.text(key, v, def)
	if !slices.Contains(allowed, s) {
		c.bad(key, "%q is unknown: expected one of %s", s, strings.Join(allowed, ", "))
	}
	return s
}

func (c *checker) duration(key string, v *string, def, lo, hi time.Duration) time.Duration {
	if v == nil {
		return def
	}
	d, err := time.ParseDuration(*v)
	if err != nil {
		c.bad(key, "%q is no duration: expected a number with its unit, such as \"500ms\" or \"10s\"", *v)
		return def
	}
	if d < lo || d > hi {
		c.bad(key, "%v is out of range: expected %v to %v", d, lo, hi)
	}
	return d
}

func (c *checker) flag(v *bool) bool { return v != nil && *v }

// sp checks the section of the service provider's centre.
func (c *checker) sp(f *fileSP, sp *SP) {
	sp.URL = c.text("sp.url", f.URL, "")
	if f.URL != nil && sp.URL != "" {
		if err := CheckURL(sp.URL); err != nil {
			c.bad("sp.url", "%v", err)
		}
	}
	sp.Anchors = c.paths("sp.anchors", f.Anchors)
	if sp.URL != "" && len(sp.Anchors) == 0 {
		c.bad("sp.anchors", "is missing: expected at least one PEM file with the CA certificate that the centre's TLS certificate chains to")
	}
}

// CheckURL says what is wrong with the address of a centre.
func CheckURL(s string) error {
	u, err := url.Parse(s)
	switch {
	case err != nil || len(s) > 512:
		return fmt.Errorf("%.80q is no URL: expected https://HOST or https://HOST:PORT", s)
	case u.Scheme != "https" || u.Hostname() == "" || u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "":
		return fmt.Errorf("%.80q: expected https://HOST or https://HOST:PORT and nothing else", s)
	}
	return nil
}

// check fills in the defaults and collects what is wrong.
func (c *checker) check(f *file) *Config {
	var cfg Config
	d := &cfg.Daemon
	d.StateDir = c.path("daemon.state_dir", f.Daemon.StateDir, "/var/lib/wardgate")
	d.RunDir = c.path("daemon.run_dir", f.Daemon.RunDir, "/run/wardgate")
	d.LogLevel = c.oneOf("daemon.log_level", f.Daemon.LogLevel, "info", "debug", "info", "warn", "error")
	d.LogFormat = c.oneOf("daemon.log_format", f.Daemon.LogFormat, "json", "json", "console")

	cfg.Control.Socket = c.path("control.socket", f.Control.Socket, filepath.Join(d.RunDir, "control.sock"))
	// sun_path of unix(7) holds 108 bytes with the terminating zero.
	if n := len(cfg.Control.Socket); n > 107 {
		c.bad("control.socket", "has %d bytes: expected at most 107, the limit of Unix sockets", n)
	}
	cfg.Control.Group = c.text("control.group", f.Control.Group, "")

	c.token(&f.Token, &cfg.Token)

	p := &cfg.Policy
	p.File = c.path("policy.file", f.Policy.File, filepath.Join(d.StateDir, "policy.jws"))
	p.Anchors = c.paths("policy.anchors", f.Policy.Anchors)
	if len(p.Anchors) == 0 {
		c.bad("policy.anchors", "is missing: expected at least one PEM file with the CA certificate that signers of policies chain to")
	}
	p.CRLs = c.paths("policy.crls", f.Policy.CRLs)

	c.sp(&f.SP, &cfg.SP)

	c.network(&f.Network, &cfg.Network)

	cfg.Audit.File = c.path("audit.file", f.Audit.File, filepath.Join(d.StateDir, "audit.jsonl"))

	l := &cfg.Limits
	l.HeldPackets = number(c, "limits.held_packets", f.Limits.HeldPackets, 64, 1, 4096)
	l.HeldBytes = number(c, "limits.held_bytes", f.Limits.HeldBytes, 256<<10, 65535, 64<<20)
	l.HeldFor = c.duration("limits.held_for", f.Limits.HeldFor, 10*time.Second, 100*time.Millisecond, time.Minute)
	l.Flows = number(c, "limits.flows", f.Limits.Flows, 65536, 256, 16<<20)
	l.HalfOpen = number(c, "limits.half_open", f.Limits.HalfOpen, 1024, 8, 1<<20)
	l.CookieThreshold = number(c, "limits.cookie_threshold", f.Limits.CookieThreshold, 64, 0, 1<<20)
	if l.CookieThreshold > l.HalfOpen {
		c.bad("limits.cookie_threshold", "%d is above half_open (%d): cookies would never be asked for", l.CookieThreshold, l.HalfOpen)
	}
	l.PuzzleThreshold = number(c, "limits.puzzle_threshold", f.Limits.PuzzleThreshold, max(l.HalfOpen/4, l.CookieThreshold, 1), 1, 1<<20)
	if l.PuzzleThreshold < l.CookieThreshold {
		c.bad("limits.puzzle_threshold", "%d is below cookie_threshold (%d): a puzzle always comes with a cookie", l.PuzzleThreshold, l.CookieThreshold)
	}
	l.PuzzleDifficulty = number(c, "limits.puzzle_difficulty", f.Limits.PuzzleDifficulty, 16, 8, 28)
	l.PuzzleMaximum = number(c, "limits.puzzle_maximum", f.Limits.PuzzleMaximum, max(l.PuzzleDifficulty, 20), 8, 28)
	if l.PuzzleMaximum < l.PuzzleDifficulty {
		c.bad("limits.puzzle_maximum", "%d is below puzzle_difficulty (%d)", l.PuzzleMaximum, l.PuzzleDifficulty)
	}
	l.PuzzleSolve = number(c, "limits.puzzle_solve", f.Limits.PuzzleSolve, 22, 0, 28)
	l.TCPConnections = number(c, "limits.tcp_connections", f.Limits.TCPConnections, 4096, 16, 1<<20)
	l.RefusalsPerSec = number(c, "limits.refusals_per_second", f.Limits.RefusalsPerSec, 20, 1, 10000)
	l.ShutdownDeadline = c.duration("limits.shutdown_deadline", f.Limits.ShutdownDeadline, 5*time.Second, 100*time.Millisecond, time.Minute)
	return &cfg
}

func (c *checker) token(f *fileToken, t *Token) {
	t.Module = c.path("token.module", f.Module, "")
	if f.Module == nil {
		c.bad("token.module", "is missing: expected the path of the token's PKCS#11 library, such as \"/usr/lib/softhsm/libsofthsm2.so\"")
	}
	t.Label = c.text("token.label", f.Label, "")
	if f.Label == nil {
		c.bad("token.label", "is missing: expected the label of the token (wardgate token list shows it)")
	}
	// PKCS#11, CK_TOKEN_INFO: label is 32 bytes.
	if len(t.Label) > 32 {
		c.bad("token.label", "%q has %d bytes: expected at most 32", t.Label, len(t.Label))
	}
	t.PINFile = c.path("token.pin_file", f.PINFile, "")
	t.PINCredential = c.text("token.pin_credential", f.PINCredential, "")
	if strings.ContainsRune(t.PINCredential, '/') {
		c.bad("token.pin_credential", "%q is a path: expected the name of a credential, as in LoadCredential=", t.PINCredential)
	}
	t.PINEnv = c.text("token.pin_env", f.PINEnv, "")
	if strings.ContainsAny(t.PINEnv, "= ") {
		c.bad("token.pin_env", "%q is no name of an environment variable", t.PINEnv)
	}
	sources := 0
	for _, s := range []*string{f.PINFile, f.PINCredential, f.PINEnv} {
		if s != nil {
			sources++
		}
	}
	if sources != 1 {
		c.bad("token", "%d sources of the PIN: expected exactly one of pin_file, pin_credential, pin_env", sources)
	}
	t.Chip = c.path("token.chip", f.Chip, "/usr/libexec/wardgate/wardgate-chip")
	t.User = c.text("token.user", f.User, "")
}

func (c *checker) network(f *fileNetwork, n *Network) {
	n.TUN = c.text("network.tun", f.TUN, "wardgate0")
	if len(n.TUN) > 15 || n.TUN == "." || n.TUN == ".." || strings.ContainsFunc(n.TUN, func(r rune) bool {
		return r <= ' ' || r >= 0x7f || strings.ContainsRune("/:*%", r)
	}) {
		c.bad("network.tun", "%q is no interface name: expected 1 to 15 ASCII letters and digits", n.TUN)
	}
	n.Queues = number(c, "network.queues", f.Queues, 0, 0, 256)
	// RFC 8200, section 5: IPv6 needs 1280.
	if f.MTU != nil && *f.MTU != 0 {
		n.MTU = number(c, "network.mtu", f.MTU, 0, 1280, 65535)
	}
	for _, s := range f.Listen {
		a, err := netip.ParseAddr(s)
		switch {
		case err != nil:
			c.bad("network.listen", "%q is no IP address: expected one such as \"203.0.113.1\" or \"2001:db8::1\", without a port", s)
		case a.IsUnspecified(), a.IsMulticast(), a.Is4In6():
			c.bad("network.listen", "%q is no address of an interface: to listen on all, leave the key out", s)
		case slices.Contains(n.Listen, a):
			c.bad("network.listen", "%q is there twice", s)
		default:
			n.Listen = append(n.Listen, a)
		}
	}
	n.IKEPort = number[uint16](c, "network.ike_port", f.IKEPort, 500, 1, 65535)
	n.NATTPort = number[uint16](c, "network.natt_port", f.NATTPort, 4500, 1, 65535)
	if n.IKEPort == n.NATTPort {
		c.bad("network.natt_port", "is %d like ike_port: expected two different ports (RFC 3948, section 2.2: the markers would be ambiguous)", n.NATTPort)
	}
	n.ForceEncap = c.flag(f.ForceEncap)
	n.TCP = c.oneOf("network.tcp", f.TCP, TCPFallback, TCPFallback, TCPAlways, TCPNever)
	n.TCPPort = number[uint16](c, "network.tcp_port", f.TCPPort, 4500, 1, 65535)
	n.RouteTable = number(c, "network.route_table", f.RouteTable, 5747, 1, math.MaxInt32)
	if n.RouteTable >= 253 && n.RouteTable <= 255 {
		c.bad("network.route_table", "%d is one of the kernel's own tables (default, main, local)", n.RouteTable)
	}
	n.RulePriority = number(c, "network.rule_priority", f.RulePriority, 57, 1, 32765)
	n.Mark = number[uint32](c, "network.mark", f.Mark, 0x57470001, 1, math.MaxUint32)
	n.NFLogGroup = number[uint16](c, "network.nflog_group", f.NFLogGroup, 5747, 1, 65535)
}

// positions finds the line of each key, for the errors that the decoder cannot make. It reads
// files that the decoder has accepted, so it may be simple: tables and keys as people write them.
// A key that it does not find is reported without a line.
func positions(data []byte) map[string]int {
	out := map[string]int{}
	section := ""
	for i, line := range strings.Split(string(data), "\n") {
		line = strings.TrimSpace(line)
		if rest, ok := strings.CutPrefix(line, "["); ok {
			if name, _, ok := strings.Cut(rest, "]"); ok && !strings.ContainsAny(name, "[\",") {
				section = strings.TrimSpace(name)
				if out[section] == 0 {
					out[section] = i + 1
				}
			}
			continue
		}
		if key, _, ok := strings.Cut(line, "="); ok {
			key = strings.Trim(strings.TrimSpace(key), "\"'")
			if section != "" {
				key = section + "." + key
			}
			if out[key] == 0 {
				out[key] = i + 1
			}
		}
	}
	return out
}
