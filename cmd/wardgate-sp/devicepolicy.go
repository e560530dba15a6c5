package main

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"wardgate/sp"
	"wardgate/sp/store"
)

// policyAnswer is what `device policy --json` prints.
type policyAnswer struct {
	Device   string    `json:"device"`
	Serial   uint64    `json:"serial"`
	NotAfter time.Time `json:"not_after"`
	File     string    `json:"file,omitempty"`
}

// devicePolicyCommand gives out a device's policy file, for a device that cannot reach the centre: it is the
// very file that the centre would send, signed for that device alone.
func (c *cli) devicePolicyCommand() *cobra.Command {
	var out string
	cmd := &cobra.Command{
		Use: "policy NAME", Short: "Give out a device's newest policy file, to be carried by hand", Args: cobra.ExactArgs(1),
		Long: "Writes the policy file that the centre has for a device, signed for that device alone, so that it can be\n" +
			"carried there by hand: wardgate policy install FILE. It may hold pre-shared keys.",
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			switch {
			case out == "":
				return fmt.Errorf("%w: --out: expected a file name, came nothing", errUsage)
			case c.api != "":
				return fmt.Errorf("%w: this is done on the database: leave out --api", errUsage)
			}
			ctx := cmd.Context()
			centre, err := c.open(ctx, sp.Options{})
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, centre.Close()) }()
			name := strings.ToLower(args[0])
			p, err := centre.Store().Latest(ctx, name)
			if errors.Is(err, store.ErrNotFound) {
				return fmt.Errorf("the centre has no policy for %q: expected the name of an active device (see: wardgate-sp device list), of which a running centre has made the policy: %w", name, err)
			}
			if err != nil {
				return err
			}
			// Never over a file that is there: it may be another device's.
			f, err := os.OpenFile(out, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
			if err != nil {
				return err
			}
			_, err = f.Write(p.JWS)
			if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
				return errors.Join(err, os.Remove(out))
			}
			return c.print(cmd, policyAnswer{name, p.Serial, p.NotAfter, out},
				fmt.Sprintf("%s: policy %d of %s, valid until %s\n", out, p.Serial, name, p.NotAfter.UTC().Format(time.RFC3339)))
		},
	}
	cmd.Flags().StringVar(&out, "out", "", "`file` to write, which must not exist")
	return cmd
}
