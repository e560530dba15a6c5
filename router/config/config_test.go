package config

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const minimalFile = `
[token]
module = "/usr/lib/softhsm/libsofthsm2.so"
label = "wardgate"
pin_file = "/etc/wardgate/pin"
[policy]
anchors = ["/etc/wardgate/policy-ca.pem"]
`

func defaults() *Config {
	return &Config{
		Daemon:  Daemon{StateDir: "/var/lib/wardgate", RunDir: "/run/wardgate", LogLevel: "info", LogFormat: "json"},
		Control: Control{Socket: "/run/wardgate/control.sock"},
		Token: Token{
			Module: "/usr/lib/softhsm/libsofthsm2.so", Label: "wardgate", PINFile: "/etc/wardgate/pin",
			Chip: "/usr/libexec/wardgate/wardgate-chip",
		},
		Policy: Policy{File: "/var/lib/wardgate/policy.jws", Anchors: []string{"/etc/wardgate/policy-ca.pem"}},
		Network: Network{
			TUN: "wardgate0", MTU: 0, IKEPort: 500, NATTPort: 4500, TCP: TCPFallback, TCPPort: 4500,
			RouteTable: 5747, RulePriority: 57, Mark: 0x57470001, NFLogGroup: 5747,
		},
		Audit: Audit{File: "/var/lib/wardgate/audit.jsonl"},
		Limits: Limits{
			HeldPackets: 64, HeldBytes: 262144, HeldFor: 10 * time.Second, Flows: 65536,
			HalfOpen: 1024, CookieThreshold: 64, PuzzleThreshold: 256, PuzzleDifficulty: 16, PuzzleMaximum: 20, PuzzleSolve: 22, TCPConnections: 4096, RefusalsPerSec: 20, ShutdownDeadline: 5 * time.Second,
		},
	}
}

var cmpAddr = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })

func TestDefaults(t *testing.T) {
	cfg, err := Parse("test.toml", []byte(minimalFile))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(defaults(), cfg, cmpAddr); diff != "" {
		t.Error(diff)
	}
}

func TestDirectoriesMoveWhatIsInThem(t *testing.T) {
	cfg, err := Parse("test.toml", []byte("daemon = {state_dir = '/srv/s/', run_dir = '/srv/r'}\n"+minimalFile))
	if err != nil {
		t.Fatal(err)
	}
	for got, want := range map[string]string{
		cfg.Control.Socket: "/srv/r/control.sock", cfg.Policy.File: "/srv/s/policy.jws", cfg.Audit.File: "/srv/s/audit.jsonl",
	} {
		if got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

func TestRefused(t *testing.T) {
	for _, c := range []struct {
		name, add string // section lines before the minimal file, or replacing it when it starts with "="
		want      []string
	}{
		{"not TOML", "=[daemon\n", []string{"test.toml:1:"}},
		{"unknown key", "[daemon]\nstate_dri = '/x'\n", []string{"test.toml:2:1", `"daemon.state_dri"`, `did you mean "daemon.state_dir"`}},
		{"unknown section", "[networks]\nmtu = 1400\n", []string{"test.toml:", "networks", `did you mean "network`}},
		{"key in the wrong section", "[daemon]\nmtu = 1400\n", []string{"test.toml:2:1", `did you mean "network.mtu"`}},
		{"nothing near", "[daemon]\nzzzzzzzzzzzz = 1\n", []string{"docs/wardgated.toml"}},
		{"wrong type", "[network]\nmtu = 'big'\n", []string{"test.toml:2:7"}},
		{"twice", "[network]\nmtu = 1400\nmtu = 1400\n", []string{"test.toml:3"}},
		{"out of range", "[network]\n\nmtu = 1000\n", []string{"test.toml:3: network.mtu: 1000", "1280 to 65535"}},
		{"several at once", "[network]\nmtu = 1\nqueues = -1\n", []string{"network.mtu", "network.queues"}},
		{"relative path", "[audit]\nfile = 'x'\n", []string{"audit.file", "begins with /"}},
		{"empty", "[control]\ngroup = ''\n", []string{"control.group", "empty"}},
		{"control character", "[control]\ngroup = \"a\\u0007\"\n", []string{"control character"}},
		{"socket too long", "[control]\nsocket = '/" + strings.Repeat("x", 107) + "'\n", []string{"control.socket", "at most 107"}},
		{"level", "[daemon]\nlog_level = 'loud'\n", []string{"debug, info, warn, error"}},
		{"format", "[daemon]\nlog_format = 'xml'\n", []string{"json, console"}},
		{"listen", "[network]\nlisten = ['0.0.0.0', '1.2.3.4:500', '10.0.0.1', '10.0.0.1']\n", []string{`"0.0.0.0"`, `"1.2.3.4:500"`, "twice"}},
		{"same ports", "[network]\nike_port = 4500\n", []string{"natt_port"}},
		{"tcp", "[network]\ntcp = 'perhaps'\n", []string{"fallback, always, never"}},
		{"tun", "[network]\ntun = 'a/b'\n", []string{"network.tun"}},
		{"main table", "[network]\nroute_table = 254\n", []string{"own tables"}},
		{"duration", "[limits]\nheld_for = '10'\n", []string{"held_for", "10s"}},
		{"duration range", "[limits]\nheld_for = '10h'\n", []string{"out of range"}},
		{"cookies", "[limits]\nhalf_open = 10\ncookie_threshold = 11\n", []string{"cookie_threshold"}},
		{"puzzles before cookies", "[limits]\npuzzle_threshold = 63\n", []string{"puzzle_threshold", "cookie_threshold (64)"}},
		{"puzzles too easy", "[limits]\npuzzle_difficulty = 7\n", []string{"puzzle_difficulty", "8"}},
		{"puzzles get easier", "[limits]\npuzzle_difficulty = 18\npuzzle_maximum = 17\n", []string{"puzzle_maximum", "puzzle_difficulty (18)"}},
		{"puzzles nobody solves", "[limits]\npuzzle_solve = 29\n", []string{"puzzle_solve", "28"}},
		{"nothing", "=", []string{"token.module", "token.label", "0 sources of the PIN", "policy.anchors"}},
		{"two PINs", "=[token]\nmodule='/x'\nlabel='l'\npin_file='/p'\npin_env='P'\n[policy]\nanchors=['/a']\n", []string{"test.toml:1: token: 2 sources"}},
		{"label", "=[token]\nmodule='/x'\nlabel='" + strings.Repeat("l", 33) + "'\npin_env='P'\n[policy]\nanchors=['/a']\n", []string{"33 bytes"}},
		{"credential", "=[token]\nmodule='/x'\nlabel='l'\npin_credential='/p'\n[policy]\nanchors=['/a']\n", []string{"name of a credential"}},
		{"env", "=[token]\nmodule='/x'\nlabel='l'\npin_env='A=B'\n[policy]\nanchors=['/a']\n", []string{"environment variable"}},
		{"centre without TLS", "[sp]\nurl = 'http://sp.example'\nanchors = ['/a']\n", []string{"test.toml:2: sp.url", "https://HOST"}},
		{"centre with a path", "[sp]\nurl = 'https://sp.example/est'\nanchors = ['/a']\n", []string{"sp.url", "nothing else"}},
		{"centre without anchors", "[sp]\nurl = 'https://sp.example'\n", []string{"sp.anchors: is missing"}},
		{"too large", "=#" + strings.Repeat("x", maxSize), []string{"at most"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			text, whole := strings.CutPrefix(c.add, "=")
			if !whole {
				text += minimalFile
			}
			cfg, err := Parse("test.toml", []byte(text))
			if cfg != nil || !errors.Is(err, ErrConfig) {
				t.Fatalf("got %v, %v; want ErrConfig", cfg, err)
			}
			for _, w := range c.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%q not in: %v", w, err)
				}
			}
		})
	}
}

func docs(t *testing.T) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("..", "..", "docs", "wardgated.toml"))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// TestDocumentedExample: the example is valid, and so are the defaults that it shows.
func TestDocumentedExample(t *testing.T) {
	text := docs(t)
	cfg, err := Parse("docs/wardgated.toml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	want := defaults()
	want.Control.Group = "wardgate"
	want.Token.PINFile, want.Token.PINCredential = "", "pin"
	if diff := cmp.Diff(want, cfg, cmpAddr); diff != "" {
		t.Errorf("the example says something else than its comments: %s", diff)
	}
	// With all defaults written out. The two other PIN sources and the examples that are not
	// defaults stay out.
	shown := regexp.MustCompile(`(?m)^#([a-z_]+ = .*)$`).ReplaceAllStringFunc(text, func(line string) string {
		for _, not := range []string{"#pin_", "#user", "#listen", "#url"} {
			if strings.HasPrefix(line, not) {
				return line
			}
		}
		return line[1:]
	})
	cfg, err = Parse("docs/wardgated.toml", []byte(shown))
	if err != nil {
		t.Fatal(err)
	}
	if cfg.SP.Anchors != nil && len(cfg.SP.Anchors) == 0 {
		cfg.SP.Anchors = nil
	}
	if cfg.Policy.CRLs != nil && len(cfg.Policy.CRLs) == 0 {
		cfg.Policy.CRLs = nil
	}
	if diff := cmp.Diff(want, cfg, cmpAddr); diff != "" {
		t.Errorf("a default in the example is not the default: %s", diff)
	}
	for _, key := range Keys() {
		section, name, _ := strings.Cut(key, ".")
		_, rest, ok := strings.Cut(text, "["+section+"]\n")
		if next := strings.Index(rest, "\n["); next >= 0 {
			rest = rest[:next]
		}
		if !ok || !regexp.MustCompile(`(?m)^#?`+name+` = `).MatchString(rest) {
			t.Errorf("key %s is not in the example", key)
		}
	}
}

func TestKeys(t *testing.T) {
	keys := Keys()
	if len(keys) < 30 || !slices.Contains(keys, "network.mtu") || slices.Contains(keys, "network.") {
		t.Errorf("keys: %v", keys)
	}
}

func TestLoad(t *testing.T) {
	if _, err := Load(filepath.Join(t.TempDir(), "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing file: %v", err)
	}
}

func TestLoadAnchorsAndCRLs(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	for _, c := range []struct{ name, text, want string }{
		{"empty", "", "no certificate found"},
		{"key", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "PRIVATE KEY"},
		{"broken", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "certificate 1"},
	} {
		p := Policy{Anchors: []string{write(c.name, c.text)}}
		if _, err := p.LoadAnchors(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("anchor %s: %v", c.name, err)
		}
		p = Policy{CRLs: p.Anchors}
		if _, err := p.LoadCRLs(); err == nil {
			t.Errorf("CRL %s: no error", c.name)
		}
	}
}

func FuzzConfig(f *testing.F) {
	f.Add([]byte(minimalFile))
	f.Add([]byte("[network]\nmtu = 'x'\n[[daemon]]\n"))
	f.Add([]byte("daemon.state_dir = '/x'\nnetwork = { listen = [\"::1\"] }\n"))
	if data, err := os.ReadFile(filepath.Join("..", "..", "docs", "wardgated.toml")); err == nil {
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		cfg, err := Parse("fuzz.toml", data)
		if (cfg == nil) == (err == nil) {
			t.Fatalf("got %v and %v", cfg, err)
		}
		if err != nil {
			if !errors.Is(err, ErrConfig) {
				t.Fatalf("error of no class: %v", err)
			}
			return
		}
		if cfg.Network.MTU != 0 && cfg.Network.MTU < 1280 || cfg.Network.IKEPort == 0 || cfg.Token.Module == "" || len(cfg.Policy.Anchors) == 0 ||
			cfg.Limits.HeldPackets < 1 || cfg.Limits.HeldFor <= 0 || !filepath.IsAbs(cfg.Daemon.StateDir) {
			t.Fatalf("accepted: %+v", cfg)
		}
	})
}
