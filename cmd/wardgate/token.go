package main

import (
	"context"
	"crypto"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"wardgate/internal/certs"
	"wardgate/pkichip"
	"wardgate/router/control"
)

// tokenCommand is `wardgate token`: it looks after the token by itself, with a chip process of its
// own, so that it works before the daemon runs and while it does.
func tokenCommand() *cobra.Command {
	o := &tokenOptions{}
	cmd := &cobra.Command{
		Use:   "token",
		Short: "Look after the token with the device's and the services' keys",
		Long: "The token holds the device's key and certificate (layer 1) and one key and certificate for\n" +
			"each service (layer 2). These commands start a chip process of their own and need no daemon.\n" +
			"Module, label and PIN are those of [token] in the configuration, unless flags say otherwise.",
	}
	f := cmd.PersistentFlags()
	f.StringVar(&o.config, "config", defaultConfig, "configuration of wardgated to take [token] from")
	f.StringVar(&o.Module, "module", "", "PKCS#11 library")
	f.StringVar(&o.Label, "label", "", "label of the token")
	f.StringVar(&o.Chip, "chip", "", "path of wardgate-chip")
	f.StringVar(&o.User, "user", "", "user that the chip process becomes")
	f.StringVar(&o.PINFile, "pin-file", "", "file with the PIN")
	f.StringVar(&o.PINCredential, "pin-credential", "", "systemd credential with the PIN")
	f.StringVar(&o.PINEnv, "pin-env", "", "environment variable with the PIN")
	f.BoolVar(&o.ask, "ask-pin", false, "ask for the PIN (the way to use the last try)")
	cmd.AddCommand(tokenInitCommand(o), tokenListCommand(o), tokenCSRCommand(o), tokenImportCommand(o), tokenCheckCommand(o), tokenDeleteCommand(o), tokenServiceCommand(o))
	return cmd
}

const (
	defaultConfig = "/etc/wardgate/wardgated.toml"
	defaultChip   = "/usr/libexec/wardgate/wardgate-chip"
	tokenTime     = 5 * time.Minute // an RSA key on a smart card takes its time
)

// tokenOptions are the flags; the capitalised ones can come from [token] of the configuration.
type tokenOptions struct {
	config string
	socket string // of the daemon, when the configuration names it
	ask    bool
	tokenSettings
}

type tokenSettings struct {
	Module        string `toml:"module"`
	Label         string `toml:"label"`
	Chip          string `toml:"chip"`
	User          string `toml:"user"`
	PINFile       string `toml:"pin_file"`
	PINCredential string `toml:"pin_credential"`
	PINEnv        string `toml:"pin_env"`
}

// complete adds to the flags what the configuration says. A configuration that is not there is an
// error only when it was asked for.
func (o *tokenOptions) complete(cmd *cobra.Command) error {
	var file struct {
		Token   tokenSettings `toml:"token"`
		Control struct {
			Socket string `toml:"socket"`
		} `toml:"control"`
	}
	b, err := os.ReadFile(o.config)
	switch {
	case err == nil:
		if err := toml.Unmarshal(b, &file); err != nil {
			return failed(control.KindInternal, "config", "cannot understand "+o.config, "correct the file; see docs/wardgated.toml", err)
		}
	case !errors.Is(err, os.ErrNotExist) || cmd.Flags().Changed("config"):
		return fileFailed(o.config, err)
	}
	def := func(v *string, from string) {
		if *v == "" {
			*v = from
		}
	}
	t := file.Token
	def(&o.Module, t.Module)
	def(&o.Label, t.Label)
	def(&o.Chip, t.Chip)
	def(&o.User, t.User)
	o.socket = file.Control.Socket
	if o.PINFile == "" && o.PINCredential == "" && o.PINEnv == "" && !o.ask {
		o.PINFile, o.PINCredential, o.PINEnv = t.PINFile, t.PINCredential, t.PINEnv
	}
	if o.Chip == "" {
		o.Chip = defaultChip
		if exe, err := os.Executable(); err == nil {
			beside := filepath.Join(filepath.Dir(exe), "wardgate-chip")
			if _, err := os.Stat(beside); err == nil {
				o.Chip = beside
			}
		}
	}
	if o.Module == "" {
		return badUsage("give --module, or set [token] module in "+o.config, "expected the path of a PKCS#11 library, came nothing")
	}
	return nil
}

// chip starts a chip process for one command.
func (o *tokenOptions) chip(ctx context.Context, label string, pin pkichip.PINSource) (*pkichip.Chip, error) {
	c, err := pkichip.Start(ctx, pkichip.Options{Binary: o.Chip, Module: o.Module, TokenLabel: label, User: o.User, PIN: pin})
	return c, err
}

// login starts a chip process that is logged in to the token, or says why not.
func (o *tokenOptions) login(ctx context.Context, c *cli) (*pkichip.Chip, error) {
	if o.Label == "" {
		return nil, badUsage("give --label, or set [token] label in "+o.config, "expected the label of the token, came nothing")
	}
	pin := pkichip.PINSource{File: o.PINFile, Credential: o.PINCredential, Env: o.PINEnv}
	if o.ask || pin.File == "" && pin.Credential == "" && pin.Env == "" {
		b, err := askPIN(c, "PIN of token "+plain(o.Label))
		if err != nil {
			return nil, err
		}
		pin = pkichip.PINSource{Value: b}
	}
	chip, err := o.chip(ctx, o.Label, pin)
	if err != nil {
		return nil, err
	}
	if _, err := chip.List(ctx); err != nil {
		_ = chip.Close() // err is the reason that is told
		return nil, err
	}
	return chip, nil
}

// askPIN asks at the terminal, without echo.
func askPIN(c *cli, prompt string) ([]byte, error) {
	in, ok := c.in.(*os.File)
	if !ok || !term.IsTerminal(int(in.Fd())) {
		return nil, failed(control.KindToken, "no-pin", "there is no PIN", "set [token] pin_file, give --pin-file, or run this at a terminal", nil)
	}
	fmt.Fprintf(c.err, "%s: ", prompt)
	b, err := term.ReadPassword(int(in.Fd()))
	fmt.Fprintln(c.err)
	switch {
	case err != nil:
		return nil, failed(control.KindToken, "no-pin", "cannot read the PIN", "run this at a terminal", err)
	case len(b) == 0 || len(b) > 255:
		return nil, badUsage("enter the PIN", "expected a PIN of 1 to 255 octets, came %d", len(b))
	}
	return b, nil
}

// run wraps a command's work: completes the options and makes the cli.
func (o *tokenOptions) run(work func(ctx context.Context, c *cli, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		if err := o.complete(cmd); err != nil {
			return err
		}
		c := &cli{in: cmd.InOrStdin(), out: cmd.OutOrStdout(), err: cmd.ErrOrStderr(), now: time.Now, getenv: os.Getenv}
		if f := cmd.Flags().Lookup("socket"); f != nil {
			c.socket = f.Value.String()
		}
		if c.socket == "" && c.getenv(socketVariable) == "" {
			c.socket = o.socket
		}
		if out, ok := c.out.(*os.File); ok {
			c.terminal = term.IsTerminal(int(out.Fd()))
		}
		if f := cmd.Flags().Lookup("json"); f != nil {
			c.json = f.Value.String() == "true"
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), tokenTime)
		defer cancel()
		return work(ctx, c, args)
	}
}

// with runs work with a chip process that is logged in.
func (o *tokenOptions) with(work func(ctx context.Context, c *cli, chip *pkichip.Chip, args []string) error) func(*cobra.Command, []string) error {
	return o.run(func(ctx context.Context, c *cli, args []string) error {
		chip, err := o.login(ctx, c)
		if err != nil {
			return err
		}
		defer func() { _ = chip.Close() }() // the work's result is what counts
		return work(ctx, c, chip, args)
	})
}

// tokenEntry is a credential on the token, in JSON.
type tokenEntry struct {
	Layer     int        `json:"layer"`
	Service   string     `json:"service,omitempty"`
	Key       string     `json:"key,omitempty"` // kind of key; empty: the private key is missing
	ID        string     `json:"id"`            // CKA_ID, hexadecimal
	Subject   string     `json:"subject,omitempty"`
	Names     []string   `json:"names,omitempty"`
	Issuer    string     `json:"issuer,omitempty"`
	Serial    string     `json:"serial,omitempty"`
	NotBefore *time.Time `json:"not_before,omitempty"`
	NotAfter  *time.Time `json:"not_after,omitempty"`
	// Fingerprint is the SHA-256 of the certificate's DER, as policy files name the device.
	Fingerprint string `json:"fingerprint,omitempty"`
	Chain       int    `json:"intermediates"`
	Bound       bool   `json:"bound"` // layer 2: to the device certificate in layer 1
	State       string `json:"state"` // ok, waiting, no-key, expired, not-yet-valid, not-bound, no-device, does-not-sign, superseded, leftover
	Trouble     string `json:"trouble,omitempty"`
}

func entryOf(x pkichip.Credential, device *pkichip.Credential, now time.Time) tokenEntry {
	e := tokenEntry{Layer: int(x.Layer), Service: x.Service, ID: fmt.Sprintf("%x", x.ID), Chain: len(x.Chain), State: "ok"}
	if x.Signer != nil {
		e.Key = certs.KeyName(x.Signer.Public())
	}
	trouble := func(state, text string) {
		if e.State == "ok" {
			e.State, e.Trouble = state, text
		}
	}
	switch {
	case x.Cert == nil && x.Signer == nil:
		trouble("leftover", "left over from a change that was cut short; the next one removes it")
		return e
	case x.Cert == nil:
		trouble("waiting", "waits for its certificate")
		return e
	}
	c := x.Cert
	e.Subject, e.Issuer, e.Serial, e.Names = c.Subject.String(), c.Issuer.String(), fmt.Sprintf("%x", c.SerialNumber), c.DNSNames
	e.NotBefore, e.NotAfter = &c.NotBefore, &c.NotAfter
	e.Fingerprint = fmt.Sprintf("sha256:%x", sha256.Sum256(c.Raw))
	switch {
	case x.Signer == nil:
		trouble("no-key", "its private key is not on the token")
	case now.After(c.NotAfter):
		trouble("expired", "expired on "+c.NotAfter.Local().Format(time.DateTime))
	case now.Before(c.NotBefore):
		trouble("not-yet-valid", "valid from "+c.NotBefore.Local().Format(time.DateTime)+"; is the clock right?")
	}
	if x.Layer == pkichip.LayerService {
		if device == nil || device.Cert == nil {
			trouble("no-device", "there is no device certificate that it could be bound to")
		} else if err := certs.CheckRelated(c, device.Cert.Raw); err != nil {
			trouble("not-bound", err.Error())
		} else {
			e.Bound = true
		}
	}
	return e
}

func (e *tokenEntry) what() string {
	if e.Layer == 1 {
		return "device"
	}
	return "service " + plain(e.Service)
}

func entries(ctx context.Context, chip *pkichip.Chip, now time.Time, each func(pkichip.Credential, *tokenEntry)) ([]tokenEntry, error) {
	all, err := chip.List(ctx)
	if err != nil {
		return nil, err
	}
	var device *pkichip.Credential
	for i := range all {
		if all[i].Layer == pkichip.LayerDevice && all[i].Cert != nil {
			device = &all[i]
		}
	}
	serving, err := chip.Credentials(ctx)
	if err != nil {
		return nil, err
	}
	out := []tokenEntry{}
	for _, x := range all {
		e := entryOf(x, device, now)
		if x.Cert != nil && x.Signer != nil && !slices.ContainsFunc(serving, func(s pkichip.Credential) bool { return s.Cert.Equal(x.Cert) }) {
			e.State, e.Trouble = "superseded", "a newer certificate serves; the next change removes this one"
		}
		if each != nil {
			each(x, &e)
		}
		out = append(out, e)
	}
	return out, nil
}

func writeEntries(p *printer, list []tokenEntry) {
	rows := [][]string{{"WHAT", "NAME", "KEY", "VALID UNTIL", "BOUND", "STATE"}}
	for i := range list {
		e := &list[i]
		until := ""
		if e.NotAfter != nil {
			until = e.NotAfter.Local().Format(time.DateTime)
		}
		state := p.style(green, "ok")
		if e.State != "ok" {
			state = p.style(red, plain(e.Trouble))
		}
		bound := ""
		if e.Layer == int(pkichip.LayerService) && e.NotAfter != nil {
			bound = "no"
			if e.Bound {
				bound = "yes"
			}
		}
		rows = append(rows, []string{e.what(), plainAll(e.Names, ","), e.Key, until, bound, state})
	}
	p.table("", rows)
}

func tokenListCommand(o *tokenOptions) *cobra.Command {
	var slots bool
	cmd := &cobra.Command{
		Use: "list", Args: exactly(), Short: "What is on the token, or which tokens there are (--tokens)",
	}
	cmd.Flags().BoolVar(&slots, "tokens", false, "list the tokens that the module sees; needs no PIN")
	list := o.with(func(ctx context.Context, c *cli, chip *pkichip.Chip, _ []string) error {
		all, err := entries(ctx, chip, c.now(), nil)
		if err != nil {
			return err
		}
		return c.answer(map[string]any{"credentials": all}, func(p *printer) {
			if len(all) == 0 {
				p.line("The token is empty. Begin with: wardgate token csr --device NAME")
				return
			}
			writeEntries(p, all)
		})
	})
	tokens := o.run(func(ctx context.Context, c *cli, _ []string) error {
		chip, err := o.chip(ctx, "", pkichip.PINSource{})
		if err != nil {
			return err
		}
		defer func() { _ = chip.Close() }() // the list is what counts
		all, err := chip.Tokens(ctx)
		if err != nil {
			return err
		}
		type slot struct {
			Slot        uint64 `json:"slot"`
			Label       string `json:"label"`
			Model       string `json:"model"`
			Serial      string `json:"serial"`
			Initialized bool   `json:"initialized"`
			PIN         string `json:"pin"`
		}
		out := []slot{}
		for _, t := range all {
			out = append(out, slot{t.Slot, t.Label, strings.TrimSpace(t.Manufacturer + " " + t.Model), t.Serial, t.Initialized, pinText(t)})
		}
		return c.answer(map[string]any{"tokens": out}, func(p *printer) {
			rows := [][]string{{"LABEL", "MODEL", "SERIAL", "PIN"}}
			for _, t := range out {
				l := plain(t.Label)
				if !t.Initialized {
					l = "(not initialised)"
				}
				rows = append(rows, []string{l, plain(t.Model), plain(t.Serial), t.PIN})
			}
			p.table("", rows)
		})
	})
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if slots {
			return tokens(cmd, args)
		}
		return list(cmd, args)
	}
	return cmd
}

func pinText(t pkichip.TokenInfo) string {
	if !t.Initialized {
		return "none"
	}
	return [...]string{"unknown", "good", "wrong ones were tried", "one try left", "locked"}[min(int(t.PIN), 4)]
}

func tokenInitCommand(o *tokenOptions) *cobra.Command {
	var erase bool
	var soFile, pinFile string
	cmd := &cobra.Command{
		Use: "init", Args: exactly(), Short: "Initialise a new token under --label: security officer's PIN and user PIN",
		Long: "Initialises the first token that is not initialised yet, or with --erase the one of that label,\n" +
			"which destroys everything on it. The PINs are asked for, or read from files that only you can read.",
	}
	cmd.Flags().BoolVar(&erase, "erase", false, "destroy what is on the token of that label")
	cmd.Flags().StringVar(&soFile, "new-so-pin-file", "", "file with the security officer's PIN")
	cmd.Flags().StringVar(&pinFile, "new-pin-file", "", "file with the user PIN")
	cmd.RunE = o.run(func(ctx context.Context, c *cli, _ []string) error {
		if o.Label == "" {
			return badUsage("give --label, or set [token] label in "+o.config, "expected the label of the token, came nothing")
		}
		so, err := newPIN(c, soFile, "security officer's PIN")
		if err != nil {
			return err
		}
		pin, err := newPIN(c, pinFile, "new user PIN")
		if err != nil {
			clear(so)
			return err
		}
		chip, err := o.chip(ctx, "", pkichip.PINSource{Value: pin, SOPIN: so})
		if err != nil {
			return err
		}
		defer func() { _ = chip.Close() }() // the token is initialised or not
		info, err := chip.InitToken(ctx, o.Label, erase)
		if err != nil {
			return err
		}
		return c.answer(map[string]any{"label": info.Label, "serial": info.Serial}, func(p *printer) {
			p.line("Token %s (serial number %s) is initialised. Next: wardgate token csr --device NAME", plain(info.Label), plain(info.Serial))
		})
	})
	return cmd
}

// newPIN reads a PIN from a private file, or asks for it twice.
func newPIN(c *cli, file, what string) ([]byte, error) {
	if file != "" {
		fi, err := os.Stat(file)
		if err != nil {
			return nil, fileFailed(file, err)
		}
		if fi.Mode().Perm()&0o077 != 0 {
			return nil, failed(control.KindRefused, "file-mode", fmt.Sprintf("others may read %s (mode %#o)", file, fi.Mode().Perm()), "chmod 600 "+file, nil)
		}
		b, err := os.ReadFile(file)
		if err != nil {
			return nil, fileFailed(file, err)
		}
		for len(b) > 0 && (b[len(b)-1] == '\n' || b[len(b)-1] == '\r') {
			b = b[:len(b)-1]
		}
		if len(b) == 0 || len(b) > 255 {
			return nil, badUsage("put the PIN alone into the file", "%s: expected a PIN of 1 to 255 octets, came %d", file, len(b))
		}
		return b, nil
	}
	first, err := askPIN(c, what)
	if err != nil {
		return nil, err
	}
	again, err := askPIN(c, what+" again")
	if err != nil {
		return nil, err
	}
	defer clear(again)
	if !slices.Equal(first, again) {
		clear(first)
		return nil, badUsage("start over", "the two PINs differ")
	}
	return first, nil
}

func tokenCheckCommand(o *tokenOptions) *cobra.Command {
	return &cobra.Command{
		Use: "check", Args: exactly(), Short: "Check token, PIN, keys and certificates; signs with every key",
		Long: "Logs in, signs with every key and judges every certificate. Exit code 0: all is well; 5: not.\n" +
			"With --ask-pin a correct PIN gives back the tries that wrong ones have used up.",
		RunE: o.with(func(ctx context.Context, c *cli, chip *pkichip.Chip, _ []string) error {
			info, err := chip.Token(ctx)
			if err != nil {
				return err
			}
			kinds, err := chip.KeyTypes(ctx)
			if err != nil {
				return err
			}
			all, err := entries(ctx, chip, c.now(), func(x pkichip.Credential, e *tokenEntry) {
				if x.Signer == nil {
					return
				}
				if err := trySigning(x.Signer); err != nil && e.State == "ok" {
					e.State, e.Trouble = "does-not-sign", err.Error()
				}
			})
			if err != nil {
				return err
			}
			good, device := true, false
			for i := range all {
				e := &all[i]
				good = good && slices.Contains([]string{"ok", "waiting", "superseded", "leftover"}, e.State)
				device = device || e.Layer == 1 && e.State == "ok"
			}
			good = good && device
			answer := map[string]any{
				"ok": good, "module": chip.Status().Module, "label": info.Label, "serial": info.Serial, "pin": pinText(info),
				"key_types": kinds, "credentials": all,
			}
			err = c.answer(answer, func(p *printer) {
				p.line("Token   %s, serial number %s, PIN %s", plain(info.Label), plain(info.Serial), pinText(info))
				p.line("Module  %s", plain(chip.Status().Module))
				names := make([]string, len(kinds))
				for i, k := range kinds {
					names[i] = string(k)
				}
				p.line("Keys    can make %s", strings.Join(names, ", "))
				p.line("")
				writeEntries(p, all)
				if !device {
					p.line("")
					p.line("%s", p.style(red, "There is no usable device certificate (layer 1)."))
				}
			})
			if err == nil && !good {
				return silent(exitToken)
			}
			return err
		}),
	}
}

// trySigning makes a signature over something that is no message of any protocol.
func trySigning(s crypto.Signer) error {
	msg := []byte("wardgate token check\x00")
	if certs.KeyName(s.Public()) == "Ed25519" {
		_, err := s.Sign(nil, msg, crypto.Hash(0))
		return err
	}
	sum := sha256.Sum256(msg)
	_, err := s.Sign(nil, sum[:], crypto.SHA256)
	return err
}

func tokenDeleteCommand(o *tokenOptions) *cobra.Command {
	var service string
	cmd := &cobra.Command{
		Use: "delete", Args: exactly(), Short: "Remove a service's key and certificate from the token, without asking",
		Hidden: true, // the older spelling of `token service delete NAME --yes`
	}
	cmd.Flags().StringVar(&service, "service", "", "the service")
	cmd.RunE = o.with(func(ctx context.Context, c *cli, chip *pkichip.Chip, _ []string) error {
		if service == "" {
			return badUsage("give --service", "expected the name of a service, came nothing")
		}
		if err := chip.Delete(ctx, service); err != nil {
			return err
		}
		t := c.reload(ctx)
		return c.answer(map[string]any{"deleted": service, "daemon": t.Daemon}, func(p *printer) {
			p.line("Service %s is no longer on the token.", plain(service))
			t.write(p)
		})
	})
	return cmd
}
