// Command wardgated is the router daemon of the appliance: IPsec tunnels on demand to exactly the
// partners and hosts that the signed policy names.
//
// Usage:
//
//	wardgated [-config FILE]                run until SIGTERM
//	wardgated -check-config [-config FILE]  read the configuration, say what is wrong, exit
//	wardgated -cleanup [-config FILE]       take routes and filters out of the kernel, exit
//	wardgated -version
//
// The kernel's filters stay when the daemon ends, so that nothing leaks in the clear; -cleanup
// takes them away, for example before the package is removed.
//
// Signals: SIGTERM and SIGINT tell the peers and end; SIGHUP reads the policy anchors and the
// token again. Exit status: 0 after a clean end, 1 when something failed, 2 for a wrong command
// line or configuration.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"wardgate/internal/memory"
	"wardgate/router"
	"wardgate/router/config"
	"wardgate/router/control"
	"wardgate/router/kernel"
)

// version is set by the linker (-X main.version=…); otherwise the build information tells.
var version string

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

func run(args []string, stdout, stderr io.Writer) int {
	fs := flag.NewFlagSet("wardgated", flag.ContinueOnError)
	fs.SetOutput(stderr)
	var (
		path    = fs.String("config", config.DefaultPath, "configuration `file`")
		check   = fs.Bool("check-config", false, "check the configuration and exit")
		cleanup = fs.Bool("cleanup", false, "take routes and filters out of the kernel and exit")
		showVer = fs.Bool("version", false, "print the version and exit")
	)
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return 0
		}
		return 2
	}
	if fs.NArg() > 0 {
		fmt.Fprintf(stderr, "wardgated: unexpected argument %q; see wardgated -help\n", fs.Arg(0))
		return 2
	}
	if *showVer {
		fmt.Fprintln(stdout, "wardgated", versionText())
		return 0
	}
	cfg, err := config.Load(*path)
	if err != nil {
		fmt.Fprintf(stderr, "wardgated: %v\n", err)
		return 2
	}
	if *check {
		fmt.Fprintf(stdout, "%s is in order\n", *path)
		return 0
	}
	if *cleanup {
		if err := cleanUp(cfg); err != nil {
			fmt.Fprintf(stderr, "wardgated: %v\n", err)
			return 1
		}
		fmt.Fprintln(stdout, "routes and filters of wardgated are out of the kernel")
		return 0
	}
	log, err := newLogger(cfg.Daemon, stderr)
	if err != nil {
		fmt.Fprintf(stderr, "wardgated: %v\n", err)
		return 2
	}
	if err := serve(cfg, log); err != nil {
		log.Error("wardgated ends", zap.Error(err))
		notify(log, "STATUS=failed: "+err.Error())
		_ = log.Sync() // standard error of a terminal cannot be synced
		return 1
	}
	_ = log.Sync()
	return 0
}

func serve(cfg *config.Config, log *zap.Logger) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	for _, dir := range []string{cfg.Daemon.StateDir, cfg.Daemon.RunDir} {
		if err := os.MkdirAll(dir, 0o750); err != nil {
			return err
		}
	}
	log.Info("wardgated starts", zap.String("version", versionText()))
	go memory.Keep(ctx, memory.Router())
	if note := router.BuildNote(); note != "" {
		log.Error("THIS BUILD IS NOT FOR USE", zap.String("build", note))
	}
	r, err := router.New(router.Options{Config: cfg, Log: log, Version: versionText()})
	if err != nil {
		return err
	}
	api, err := control.Listen(control.ServerOptions{Socket: cfg.Control.Socket, Group: cfg.Control.Group, Backend: r, Log: func(msg string, kv ...any) { log.Sugar().Infow("control: "+msg, kv...) }})
	if err != nil {
		return errors.Join(err, r.Close())
	}
	served := make(chan error, 1)
	go func() { served <- api.Serve() }()

	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	go reloads(ctx, hup, r, log)
	go watchdog(ctx, r, log)

	err = r.Run(ctx, func() {
		log.Info("ready")
		notify(log, daemon.SdNotifyReady+"\nSTATUS=running")
	})
	stop()
	notify(log, daemon.SdNotifyStopping)
	shut, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	return errors.Join(err, api.Shutdown(shut), <-served)
}

func reloads(ctx context.Context, hup <-chan os.Signal, r *router.Router, log *zap.Logger) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-hup:
			notify(log, daemon.SdNotifyReloading)
			if err := r.Reload(ctx); err != nil {
				log.Error("reload failed, what was in force stays in force", zap.Error(err))
			} else {
				log.Info("reloaded")
			}
			notify(log, daemon.SdNotifyReady)
		}
	}
}

// watchdog tells systemd that the daemon lives, as long as it does (sd_watchdog_enabled(3)).
func watchdog(ctx context.Context, r *router.Router, log *zap.Logger) {
	every, err := daemon.SdWatchdogEnabled(false)
	if err != nil || every <= 0 {
		return
	}
	t := time.NewTicker(every / 2)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			if err := r.Health(ctx); err != nil {
				log.Error("not healthy", zap.Error(err))
				continue
			}
			notify(log, daemon.SdNotifyWatchdog)
		}
	}
}

func notify(log *zap.Logger, state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		log.Debug("systemd cannot be told", zap.Error(err))
	}
}

func cleanUp(cfg *config.Config) error {
	k, err := kernel.Open(kernel.Options{TunName: cfg.Network.TUN, RouteTable: cfg.Network.RouteTable, RulePriority: cfg.Network.RulePriority, Mark: cfg.Network.Mark, LogGroup: cfg.Network.NFLogGroup})
	if err != nil {
		return err
	}
	return errors.Join(k.Remove(), k.Close())
}

// newLogger makes the log on standard error: one JSON object a line, or text for a terminal.
func newLogger(cfg config.Daemon, w io.Writer) (*zap.Logger, error) {
	level, err := zapcore.ParseLevel(cfg.LogLevel)
	if err != nil {
		return nil, fmt.Errorf("[daemon] log_level: %w", err)
	}
	ec := zap.NewProductionEncoderConfig()
	ec.TimeKey, ec.EncodeTime, ec.EncodeDuration = "time", zapcore.RFC3339NanoTimeEncoder, zapcore.StringDurationEncoder
	enc := zapcore.NewJSONEncoder(ec)
	if cfg.LogFormat == "console" {
		ec.EncodeLevel = zapcore.CapitalLevelEncoder
		enc = zapcore.NewConsoleEncoder(ec)
	}
	return zap.New(zapcore.NewCore(enc, zapcore.Lock(zapcore.AddSync(w)), level)), nil
}

func versionText() string { return plainVersion() + router.BuildNote() }

func plainVersion() string {
	if version != "" {
		return version
	}
	if bi, ok := debug.ReadBuildInfo(); ok {
		for _, s := range bi.Settings {
			if s.Key == "vcs.revision" && len(s.Value) >= 12 {
				return "dev-" + s.Value[:12]
			}
		}
	}
	return "dev"
}
