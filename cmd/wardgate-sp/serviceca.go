package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"wardgate/sp"
	"wardgate/sp/store"
)

// caOrder is what the flags of `service ca` ask for beyond a CA of our own that is made in the ordinary way.
type caOrder struct {
	request, install, anchors, list string
	now, inFile, status, discard    bool
	why                             string
}

// caFlags gives `service ca` its flags. What they ask for is done in the services' folder, on the machine
// where it is, and not over the API of a running centre.
func (c *cli) caFlags(ca *cobra.Command) {
	var o caOrder
	f := ca.Flags()
	f.StringVar(&o.request, "csr", "", "make a key, and write what an upstream issuer is asked for to this `file`")
	f.StringVar(&o.install, "install", "", "put the upstream issuer's answer to use: PEM `file` with certificate and chain")
	f.StringVar(&o.anchors, "anchors", "", "with --install: PEM `file` with the roots that were agreed upon")
	f.StringVar(&o.list, "crl", "", "with --install: `file` with the root's revocation list")
	f.BoolVar(&o.now, "now", false, "the new CA issues at once, and not after [services] publish_before")
	f.BoolVar(&o.inFile, "in-file", false, "the key is made in a file also where there is a token")
	f.BoolVar(&o.status, "status", false, "show how the service's CAs are, and what is half done")
	f.BoolVar(&o.discard, "discard", false, "give up what is half done")
	ca.Long = "Makes a service's first CA, or its next one, or its pre-shared key. The next CA's anchor is in the devices'\n" +
		"policies at once; it issues after [services] publish_before.\n\n" +
		"With an upstream issuer: --csr FILE, have it signed, --install FILE --anchors ROOTS."
	ordinary := ca.RunE
	ca.RunE = func(cmd *cobra.Command, args []string) error {
		set := 0
		for _, name := range []string{"csr", "install", "status", "discard"} {
			if cmd.Flags().Changed(name) {
				set++
			}
		}
		switch {
		case set > 1:
			return fmt.Errorf("%w: expected one of --csr, --install, --status and --discard, came several", errUsage)
		case o.install == "" && (o.anchors != "" || o.list != ""):
			return fmt.Errorf("%w: --anchors and --crl belong to --install", errUsage)
		case set == 0 && !o.now && !o.inFile:
			return ordinary(cmd, args)
		case c.api != "":
			return fmt.Errorf("%w: this is done in the services' folder, on the machine where it is: leave out --api", errUsage)
		}
		o.why = cmd.Flag("why").Value.String()
		return c.caInFolder(cmd, args[0], &o)
	}
}

func (c *cli) caInFolder(cmd *cobra.Command, name string, o *caOrder) (err error) {
	ctx := cmd.Context()
	centre, err := c.open(ctx, sp.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, centre.Close()) }()
	r, _, err := centre.Store().Current(ctx)
	if err != nil {
		return err
	}
	opt := sp.CAOptions{InFile: o.inFile, Now: o.now}
	switch {
	case o.status:
		list, err := centre.CAs(r, name)
		if err != nil {
			return err
		}
		return c.print(cmd, list, caText(list))
	case o.discard:
		folder, err := centre.DiscardCA(ctx, r, name)
		text := "nothing was half done\n"
		if folder != "" {
			text = folder + " is given up\n"
		}
		return c.tell(cmd, centre, "service-ca-discarded", name, folder, text, o, err)
	case o.request != "":
		request, folder, err := centre.RequestCA(ctx, r, name, opt)
		if err == nil {
			err = writeRequest(cmd, o.request, request)
		}
		if o.request == "-" && err == nil {
			return nil
		}
		return c.tell(cmd, centre, "service-ca-requested", name, folder,
			fmt.Sprintf("%s is the request; the key is in %s\nnext: wardgate-sp service ca %s --install ANSWER --anchors ROOTS\n", o.request, folder, name), o, err)
	case o.install != "":
		folder, err := centre.InstallCAFiles(r, name, sp.CAFiles{Answer: o.install, Anchors: o.anchors, List: o.list}, opt)
		return c.tell(cmd, centre, "service-ca-installed", name, folder, folder+" is made; instances take it up within a minute\n", o, err)
	}
	folder, err := centre.MakeCA(ctx, r, name, opt)
	return c.tell(cmd, centre, "service-key-made", name, folder, folder+" is made; instances take it up within a minute\n", o, err)
}

// tell puts what was done on the record and says it.
func (c *cli) tell(cmd *cobra.Command, centre *sp.Centre, event, service, folder, text string, o *caOrder, err error) error {
	if errors.Is(err, sp.ErrUnfinished) || errors.Is(err, fs.ErrExist) {
		return err
	}
	e := store.Event{At: time.Now(), Event: event, Who: who(), What: service, Result: store.ResultOK, Detail: map[string]string{"folder": folder, "why": o.why}}
	if err != nil {
		e.Result, e.Detail["error"] = store.ResultFailed, err.Error()
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(cmd.Context()), 30*time.Second)
	defer cancel()
	if err := errors.Join(err, centre.Store().Record(ctx, e)); err != nil {
		return err
	}
	return c.print(cmd, map[string]string{"made": folder}, text)
}

func writeRequest(cmd *cobra.Command, path string, request []byte) error {
	if path == "-" {
		_, err := cmd.OutOrStdout().Write(request)
		return err
	}
	return os.WriteFile(path, request, 0o644)
}

func caText(list []sp.CAState) string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "NUMBER\tSTATE\tISSUES FROM\tUNTIL\tKEY\tFOLDER")
	day := func(t time.Time) string {
		if t.IsZero() {
			return "-"
		}
		return t.UTC().Format("2006-01-02 15:04")
	}
	for i := range list {
		s := &list[i]
		fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\t%s\n", s.Number, s.State, day(s.From), day(s.NotAfter), s.Key, s.Folder)
		if s.Fault != "" {
			fmt.Fprintf(w, "\t%s\n", s.Fault)
		}
	}
	_ = w.Flush() // into memory
	return b.String()
}

// tokenFlags lets init make the policy signer's keys and the CAs' on a token.
func tokenFlags(cmd *cobra.Command, o *sp.InitOptions) {
	var t sp.Token
	f := cmd.Flags()
	f.StringVar(&t.Label, "token", "", "`label` of the token on which the keys of policy signer and CAs are made; default: they are files")
	f.StringVar(&t.Module, "token-module", "", "with --token: path of the PKCS #11 `library`")
	f.StringVar(&t.PINFile, "token-pin-file", "", "with --token: `file` with the PIN, readable by its owner only")
	f.StringVar(&t.PINCredential, "token-pin-credential", "", "with --token: `name` of a systemd credential with the PIN")
	f.StringVar(&t.PINEnv, "token-pin-env", "", "with --token: `name` of an environment variable with the PIN")
	f.StringVar(&t.Chip, "token-chip", sp.DefaultChip, "with --token: `path` of wardgate-chip")
	f.StringVar(&t.User, "token-user", "", "with --token: `user` that the chip process becomes")
	cmd.PreRunE = func(*cobra.Command, []string) error {
		switch {
		case t.Label != "" && t.Module != "":
			o.Token = &t
		case t.Label != "" || t.Module != "":
			return fmt.Errorf("%w: expected both --token and --token-module, came one of them", errUsage)
		}
		return nil
	}
}
