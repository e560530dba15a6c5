package sp

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"

	"wardgate/sp/issue"
)

// DefaultConfig is where the centre looks for its configuration.
const DefaultConfig = "/etc/wardgate-sp/wardgate-sp.toml"

// minLife is the shortest life of service certificates. Anything below issue.MinLife is for laboratories:
// it leaves little room for clocks that differ and for a centre that is away.
const minLife = 10 * time.Second

// certificates returns what package issue is told about lives. notBefore lies 5 minutes before the time of
// issue, and less where that would be much of a short life.
func (s *Services) certificates() issue.Config {
	life := time.Duration(s.Life)
	return issue.Config{Life: life, MinLife: min(life, issue.MinLife), Backdate: min(life/12, issue.DefaultBackdate)}
}

// maxConfig bounds the configuration file, in octets.
const maxConfig = 1 << 20

// Duration is a time.Duration written like "72h".
type Duration time.Duration

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil {
		return fmt.Errorf("expected a duration such as \"72h\", came %q", text)
	}
	*d = Duration(v)
	return nil
}

// Config is the centre's configuration, complete with defaults. It is read once and not changed.
// Names of files that are relative are relative to the file's folder.
type Config struct {
	Issuer   string   `toml:"issuer"` // who makes the policies: a host name
	Database Database `toml:"database"`
	Token    Token    `toml:"token"`
	Server   Server   `toml:"server"`
	Devices  Devices  `toml:"devices"`
	Services Services `toml:"services"`
	Policy   Policy   `toml:"policy"`
	Limits   Limits   `toml:"limits"`

	Operators Operators `toml:"operators"`
}

// Database is the section [database].
type Database struct {
	URL  string   `toml:"url"`  // sqlite:PATH or postgres://…
	Poll Duration `toml:"poll"` // how often to look for what other instances wrote; default 250ms
	// Keep is how long certificates that have ended and work that is done stay; default 2160h, 0: for ever.
	Keep         Duration `toml:"keep"`
	KeepPolicies int      `toml:"keep_policies"` // of each device, the newest included; default 10, 0: all
}

// Server is the section [server].
type Server struct {
	Listen      string `toml:"listen"`      // devices: TLS 1.3; default ":8443"
	Certificate string `toml:"certificate"` // PEM: the server's and those between it and the root
	Key         string `toml:"key"`         // PKCS #8 PEM, readable by its owner only; or pkcs11:…
	Status      string `toml:"status"`      // revocation lists and OCSP, plain HTTP; empty: not served
	StatusURL   string `toml:"status_url"`  // how others reach it, for the certificates; empty: not in them
}

// Devices is the section [devices]: by what device certificates are judged.
type Devices struct {
	Anchors       []string `toml:"anchors"`       // PEM files
	Intermediates []string `toml:"intermediates"` // PEM files; clients need not send these
	CRLs          []string `toml:"crls"`          // PEM or DER files, read again when they change
	RequireCRL    bool     `toml:"require_crl"`
}

// Services is the section [services].
type Services struct {
	Dir     string   `toml:"dir"`     // DIR/SERVICE/NUMBER: the service's CAs, the highest number issues; DIR/SERVICE/psk
	Life    Duration `toml:"life"`    // of certificates; default 168h
	Overlap Duration `toml:"overlap"` // how long a certificate stays good beside its successor; default 1h
	// PublishBefore is how long the anchors of a service's next CA are in the policies before it issues.
	// Default: the life of a policy.
	PublishBefore Duration `toml:"publish_before"`

	Plain []string `toml:"plain"` // services that enrol clients without proof of the device key (curl, strongSwan)
}

// Policy is the section [policy].
type Policy struct {
	Key         string   `toml:"key"`         // the signer's, PKCS #8 PEM, readable by its owner only; or pkcs11:…
	Certificate string   `toml:"certificate"` // PEM: the signer's and those between it and the anchor
	Life        Duration `toml:"life"`        // how long a policy is good without the centre; default 72h
}

// Limits is the section [limits].
type Limits struct {
	Waiting int      `toml:"waiting"` // devices that wait for a policy at the same time; default 100000
	Wait    Duration `toml:"wait"`    // the longest wait; default 5m
	// How often one device is answered: Requests a second in the long run, each for its policy and for
	// its reports, and Burst at once. Default 1 and 60.
	Requests float64 `toml:"requests"`
	Burst    int     `toml:"burst"`
}

// LoadConfig reads and checks a configuration file. The error is ErrConfig, or that of reading it.
func LoadConfig(path string) (*Config, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading the configuration: %w", err)
	}
	return ParseConfig(path, data)
}

// ParseConfig is LoadConfig for data at hand. name is the file's: for messages, and for the folder
// that other names are relative to.
func ParseConfig(name string, data []byte) (*Config, error) {
	if len(data) > maxConfig {
		return nil, fmt.Errorf("%w: %s: expected at most %d octets, came %d", ErrConfig, name, maxConfig, len(data))
	}
	c := &Config{
		Database: Database{Poll: Duration(250 * time.Millisecond), Keep: Duration(90 * 24 * time.Hour), KeepPolicies: 10},
		Server:   Server{Listen: ":8443"},
		Services: Services{Life: Duration(issue.DefaultLife), Overlap: Duration(time.Hour)},
		Policy:   Policy{Life: Duration(72 * time.Hour)},
		Limits:   Limits{Waiting: 100_000, Wait: Duration(5 * time.Minute), Requests: 1, Burst: 60},
	}
	c.Services.PublishBefore, c.Token.Chip = -1, DefaultChip
	if err := toml.NewDecoder(bytes.NewReader(data)).DisallowUnknownFields().Decode(c); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrConfig, explainTOML(name, err))
	}
	if c.Services.PublishBefore == -1 {
		c.Services.PublishBefore = c.Policy.Life
	}
	c.resolve(filepath.Dir(name))
	if err := c.check(name); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	return c, nil
}

// explainTOML turns the decoder's errors into "file:line:column: what".
func explainTOML(name string, err error) error {
	if strict, ok := errors.AsType[*toml.StrictMissingError](err); ok {
		var all []error
		for i := range strict.Errors {
			row, col := strict.Errors[i].Position()
			all = append(all, fmt.Errorf("%s:%d:%d: expected a key of docs/sp.md, came %q; correct or remove it", name, row, col, strings.Join(strict.Errors[i].Key(), ".")))
		}
		return errors.Join(all...)
	}
	if dec, ok := errors.AsType[*toml.DecodeError](err); ok {
		row, col := dec.Position()
		return fmt.Errorf("%s:%d:%d: %s: %w", name, row, col, strings.Join(dec.Key(), "."), err)
	}
	return fmt.Errorf("%s: %w", name, err)
}

// resolve makes relative names of files relative to the configuration's folder.
func (c *Config) resolve(dir string) {
	one := func(s *string) {
		if *s != "" && !filepath.IsAbs(*s) && !isReference(*s) {
			*s = filepath.Join(dir, *s)
		}
	}
	for _, s := range []*string{&c.Server.Certificate, &c.Server.Key, &c.Services.Dir, &c.Policy.Key, &c.Policy.Certificate, &c.Operators.Socket, &c.Token.Module, &c.Token.PINFile, &c.Token.Chip} {
		one(s)
	}
	for _, list := range append([][]string{c.Devices.Anchors, c.Devices.Intermediates, c.Devices.CRLs}, c.Operators.files()...) {
		for i := range list {
			one(&list[i])
		}
	}
	if path, ok := strings.CutPrefix(c.Database.URL, "sqlite:"); ok && path != "" {
		one(&path)
		c.Database.URL = "sqlite:" + path
	}
}

func (c *Config) check(name string) error {
	var all []error
	fault := func(key, expected, came string) {
		all = append(all, fmt.Errorf("%s: %s: expected %s, came %s", name, key, expected, came))
	}
	for _, s := range []struct{ key, value, what string }{
		{"issuer", c.Issuer, "a host name: it is named in every policy"},
		{"database.url", c.Database.URL, "sqlite:PATH or postgres://…"},
		{"server.listen", c.Server.Listen, "ADDRESS:PORT or :PORT"},
		{"server.certificate", c.Server.Certificate, "a PEM file"},
		{"server.key", c.Server.Key, "a file"},
		{"services.dir", c.Services.Dir, "a folder"},
		{"policy.key", c.Policy.Key, "a file"},
		{"policy.certificate", c.Policy.Certificate, "a PEM file"},
	} {
		if s.value == "" {
			fault(s.key, s.what, "nothing")
		}
	}
	if len(c.Devices.Anchors) == 0 {
		fault("devices.anchors", "PEM files with the roots of device certificates", "none: no device could be recognized")
	}
	for _, d := range []struct {
		key      string
		value    Duration
		min, max time.Duration
	}{
		{"database.poll", c.Database.Poll, 10 * time.Millisecond, time.Minute},
		{"database.keep", c.Database.Keep, 0, 100 * 365 * 24 * time.Hour},
		{"services.life", c.Services.Life, minLife, issue.MaxLife},
		{"services.overlap", c.Services.Overlap, 0, issue.MaxLife},
		{"services.publish_before", c.Services.PublishBefore, 0, issue.MaxLife},
		{"policy.life", c.Policy.Life, time.Hour, 90 * 24 * time.Hour},
		{"limits.wait", c.Limits.Wait, time.Second, time.Hour},
	} {
		if v := time.Duration(d.value); v < d.min || v > d.max {
			fault(d.key, fmt.Sprintf("%v to %v", d.min, d.max), v.String())
		}
	}
	if c.Database.KeepPolicies < 0 {
		fault("database.keep_policies", "0 (all) or more", fmt.Sprint(c.Database.KeepPolicies))
	}
	if r := c.Limits.Requests; !(r >= 0.01 && r <= 10_000) {
		fault("limits.requests", "0.01 to 10000 a second", fmt.Sprint(r))
	}
	if c.Limits.Burst < 1 || c.Limits.Burst > 1_000_000 {
		fault("limits.burst", "1 to 1000000", fmt.Sprint(c.Limits.Burst))
	}
	if c.Limits.Waiting < 1 || c.Limits.Waiting > 10_000_000 {
		fault("limits.waiting", "1 to 10000000", fmt.Sprint(c.Limits.Waiting))
	}
	if c.Server.StatusURL != "" && !strings.HasPrefix(c.Server.StatusURL, "http://") {
		fault("server.status_url", "http://HOST[:PORT]: what is served there is signed, and who asks may have no trusted channel yet", c.Server.StatusURL)
	}
	c.checkToken(fault)
	if i := slices.IndexFunc(c.Services.Plain, func(s string) bool { return !issue.ValidName(s) }); i >= 0 {
		fault("services.plain", "names of services", c.Services.Plain[i])
	}
	c.Operators.check(fault)
	return errors.Join(all...)
}
