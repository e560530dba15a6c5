package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"wardgate/internal/certs"
)

// CentrePort is where devices reach the [Centre].
const CentrePort = 8443

// Centre is the service provider's centre on the laboratory's internet: the real wardgate-sp, with
// its database and all its keys in files of the lab's folder.
type Centre struct {
	*Netns
	Addr    netip.Addr
	Dir     string   // what `wardgate-sp init` made: configuration, keys, database
	Folder  string   // the registry's files
	Process *Process // the last one that was started

	lab *Lab
}

// Centre makes a centre for a provider's devices: its namespace, and its folder by `wardgate-sp
// init`. The provider's device CA is whom it believes about devices; CAs of services and the policy
// signer are its own. settings are lines for sections of the configuration, such as "services" to
// "overlap = \"5s\"\n". It does not run yet; see [Centre.Start].
func (l *Lab) Centre(ctx context.Context, inet *Internet, p *Provider, settings map[string]string, services ...string) (*Centre, error) {
	n, err := l.Netns("sp")
	if err != nil {
		return nil, err
	}
	c := &Centre{Netns: n, Addr: netip.MustParseAddr("198.18.0.9"), Dir: l.Path("sp", "centre"), Folder: l.Path("sp", "registry"), lab: l}
	if err := inet.Join(n, WANDev, c.Addr); err != nil {
		return nil, err
	}
	anchors, cas := l.Path("sp", "device-anchors.pem"), l.Path("sp", "device-cas.pem")
	if err := errors.Join(
		os.WriteFile(anchors, certs.EncodePEM(p.CA.Device.Anchor()), 0o600),
		os.WriteFile(cas, certs.EncodePEM(p.CA.Device.Intermediates()...), 0o600),
	); err != nil {
		return nil, err
	}
	args := []string{
		"init", c.Dir, "--issuer", "sp.example", "--host", c.Addr.String(), "--device-anchors", anchors, "--device-cas", cas,
		"--listen", c.listen(), "--status", c.Addr.String() + ":8080", "--status-url", "http://" + c.Addr.String() + ":8080",
	}
	for _, s := range services {
		args = append(args, "--service", s+"="+s+".example")
	}
	if out, err := exec.CommandContext(ctx, c.binary(), args...).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("wardgate-sp init: %w: %s", err, out)
	}
	return c, c.set(settings)
}

func (c *Centre) binary() string { return filepath.Join(c.lab.Bin, "wardgate-sp") }
func (c *Centre) listen() string { return netip.AddrPortFrom(c.Addr, CentrePort).String() }

// URL is where devices reach the centre.
func (c *Centre) URL() string { return "https://" + c.listen() }

// ConfigFile is the path of the centre's configuration.
func (c *Centre) ConfigFile() string { return filepath.Join(c.Dir, "wardgate-sp.toml") }

// WebAnchor and PolicyAnchor are PEM files: what devices are given to know the centre by.
func (c *Centre) WebAnchor() string    { return filepath.Join(c.Dir, "web-root.pem") }
func (c *Centre) PolicyAnchor() string { return filepath.Join(c.Dir, "policy-root.pem") }

// set adds lines to sections of the configuration; sections that it does not have are made.
func (c *Centre) set(settings map[string]string) error {
	text, err := os.ReadFile(c.ConfigFile())
	if err != nil {
		return err
	}
	for section, lines := range settings {
		head := []byte("[" + section + "]\n")
		if !bytes.Contains(text, head) {
			text = append(append(text, '\n'), head...)
		}
		text = bytes.Replace(text, head, append(head, lines...), 1)
	}
	return os.WriteFile(c.ConfigFile(), text, 0o600)
}

// Start runs `wardgate-sp serve` and waits until devices can connect.
func (c *Centre) Start(ctx context.Context) error {
	p, err := c.lab.Start(c.Netns, "wardgate-sp", nil, c.binary(), "--config", c.ConfigFile(), "serve")
	if err != nil {
		return err
	}
	c.Process = p
	return WaitFor(ctx, "the centre to listen", 15*time.Second, func() error {
		if err := p.Running(); err != nil {
			return err
		}
		return c.Do(func() error {
			conn, err := net.DialTimeout("tcp", c.listen(), time.Second)
			if err == nil {
				err = conn.Close()
			}
			return err
		})
	})
}

// SP runs wardgate-sp beside the running centre, on its database, and returns what it printed.
func (c *Centre) SP(ctx context.Context, args ...string) (string, error) {
	cmd := c.Command(ctx, c.binary(), append([]string{"--config", c.ConfigFile()}, args...)...)
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("wardgate-sp %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(stderr.String()+"\n"+stdout.String()))
	}
	return stdout.String(), nil
}

// Apply writes a register into the folder of registry files and makes it the registry. It returns
// what `wardgate-sp apply` printed.
func (c *Centre) Apply(ctx context.Context, r *Register) (string, error) {
	if err := r.Write(c.Folder); err != nil {
		return "", err
	}
	return c.SP(ctx, "apply", c.Folder)
}

// CentreDevice is what the centre knows of a device.
type CentreDevice struct {
	State  string `json:"state"`
	Policy struct {
		Serial   uint64    `json:"serial"`
		NotAfter time.Time `json:"not_after"`
	} `json:"policy"`
	Certificates []CentreCertificate `json:"certificates"` // the newest ones
	Report       *struct {
		Seen         time.Time `json:"seen"`
		PolicySerial uint64    `json:"policy_serial"`
		NotAfter     time.Time `json:"not_after"`
		Connections  []struct {
			Name string `json:"name"`
			Up   bool   `json:"up"`
		} `json:"connections"`
	} `json:"report"`
}

// CentreCertificate is one that the centre issued.
type CentreCertificate struct {
	Service  string    `json:"service"`
	Serial   string    `json:"serial"`
	NotAfter time.Time `json:"not_after"`
	Ends     time.Time `json:"ends"` // when it is revoked from; zero: it is not
}

// Device asks the centre for what it knows of a facility.
func (c *Centre) Device(ctx context.Context, f *Facility) (*CentreDevice, error) {
	out, err := c.SP(ctx, "device", "show", f.DeviceID, "--json")
	if err != nil {
		return nil, err
	}
	d := &CentreDevice{}
	if err := json.Unmarshal([]byte(out), d); err != nil {
		return nil, fmt.Errorf("wardgate-sp device show %s: %w", f.DeviceID, err)
	}
	return d, nil
}
