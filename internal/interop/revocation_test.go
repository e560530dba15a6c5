package interop

import (
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"wardgate/ike"
	"wardgate/internal/labca"
	"wardgate/router"
	"wardgate/router/revocation"
)

// Where the revocation state is to be had: at our address, so that both ends reach it.
const (
	listPort, ocspPort, deadPort = 8080, 2560, 1
)

// judged says how revocation is checked in a scene.
type judged string

const (
	byList   judged = "CRL"
	byOCSP   judged = "OCSP"
	byStaple judged = "stapled OCSP" // RFC 4806

	byNothing judged = "nobody answers" // where the OCSP responder should be
)

// authority is a CA with the places where it tells what it has revoked.
type authority struct {
	t    *testing.T
	ca   *labca.Authority
	how  judged
	dir  string
	host netip.Addr

	listed atomic.Int32 // lists given out
}

// newAuthority makes one for addresses in 198.18.7.0/24: the URIs are in the certificates.
func newAuthority(t *testing.T, how judged) *authority {
	t.Helper()
	a := &authority{t: t, how: how, dir: t.TempDir(), host: netip.MustParseAddr("198.18.7.1")}
	opt := labca.Options{Kind: labca.Device, Name: "device", At: time.Now().Add(-time.Hour), Direct: true}
	if how == byList {
		opt.CRLURL = fmt.Sprintf("http://%v:%d", a.host, listPort)
	}
	a.ca = must(labca.New(opt))
	return a
}

// issue makes a credential whose certificate names the OCSP responder at a port.
func (a *authority) issue(name string, port int) *credential {
	a.t.Helper()
	c := &credential{name: name, key: must(labca.NewKey(labca.P256)), ca: a.ca}
	r := labca.Request{Public: c.key.Public(), DNSNames: []string{name}, At: time.Now().Add(-time.Hour)}
	if a.how != byList {
		// AuthorityInfoAccess (RFC 5280, section 4.2.2.1) with id-ad-ocsp.
		type access struct {
			Method   asn1.ObjectIdentifier
			Location asn1.RawValue
		}
		uri := fmt.Sprintf("http://%v:%d", a.host, port)
		value := must(asn1.Marshal([]access{{asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1}, asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 6, Bytes: []byte(uri)}}}))
		r.Extra = []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 1, 1}, Value: value}}
	}
	c.leaf = must(a.ca.Issue(r))
	return c
}

// serve starts what tells about these certificates, of which one may be revoked, in our namespace.
func (a *authority) serve(sc *scene, revoked *credential) {
	a.t.Helper()
	if revoked != nil {
		if err := a.ca.Revoke(revoked.leaf.SerialNumber, time.Now().Add(-time.Minute), 1); err != nil {
			a.t.Fatal(err)
		}
	}
	if a.how == byList {
		list := must(a.ca.CRLs(time.Now().Add(-time.Minute), time.Hour))[0].Raw
		var l net.Listener
		if err := within(a.t, sc.w.ours, func() (err error) {
			l, err = net.Listen("tcp4", netip.AddrPortFrom(a.host, listPort).String())
			return err
		}); err != nil {
			a.t.Fatal(err)
		}
		s := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			a.listed.Add(1)
			_, _ = w.Write(list)
		})}
		go func() { _ = s.Serve(l) }()
		a.t.Cleanup(func() { _ = s.Close() })
		return
	}
	a.respond(sc, revoked)
}

// respond starts OpenSSL's OCSP responder, with a certificate of its own by the CA.
func (a *authority) respond(sc *scene, revoked *credential) {
	a.t.Helper()
	write := func(name string, data []byte) string {
		path := filepath.Join(a.dir, name)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			a.t.Fatal(err)
		}
		return path
	}
	key := must(labca.NewKey(labca.P256))
	signer := must(a.ca.Issue(labca.Request{
		Public: key.Public(), DNSNames: []string{"ocsp.devices.example"}, At: time.Now().Add(-time.Hour),
		EKUs: []asn1.ObjectIdentifier{{1, 3, 6, 1, 5, 5, 7, 3, 9}}, // id-kp-OCSPSigning
	}))
	cert := func(c *x509.Certificate) []byte {
		return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
	}
	var index strings.Builder
	utc := func(t time.Time) string { return t.UTC().Format("060102150405Z") }
	for _, c := range []*credential{sc.ourDevice, sc.theirDevice} {
		serial := fmt.Sprintf("%X", c.leaf.SerialNumber)
		if len(serial)%2 == 1 {
			serial = "0" + serial
		}
		state, at := "V", ""
		if c == revoked {
			state, at = "R", utc(time.Now().Add(-time.Minute))+",keyCompromise"
		}
		fmt.Fprintf(&index, "%s\t%s\t%s\t%s\tunknown\t/CN=%s\n", state, utc(time.Now().Add(24*time.Hour)), at, serial, c.name)
	}
	cmd := exec.Command("ip", "netns", "exec", sc.w.ours, "openssl", "ocsp", "-port", fmt.Sprint(ocspPort), "-nmin", "60",
		"-index", write("index.txt", []byte(index.String())), "-CA", write("ca.pem", cert(a.ca.Anchor())),
		"-rsigner", write("ocsp.pem", cert(signer)), "-rkey", write("ocsp.key", must(labca.MarshalKey(key))))
	out := &lockedBuffer{}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		a.t.Fatal(err)
	}
	a.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if a.t.Failed() {
			a.t.Logf("openssl ocsp said:\n%s", out)
		}
	})
	for end := time.Now().Add(30 * time.Second); !strings.Contains(out.String(), "waiting for OCSP client connections"); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			a.t.Fatalf("openssl ocsp did not come up:\n%s", out)
		}
	}
}

// client makes requests from our namespace.
func client(t *testing.T, sc *scene) *http.Client {
	return &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(_ context.Context, network, addr string) (c net.Conn, err error) {
		err = within(t, sc.w.ours, func() error {
			c, err = net.DialTimeout(network, addr, 10*time.Second)
			return err
		})
		return c, err
	}}}
}

// judgedScene is a scene with one round of certificates in which both ends insist on knowing that the
// other one's certificate was not revoked.
func judgedScene(t *testing.T, o sceneOptions, how judged, revoked behind) (*scene, *authority) {
	t.Helper()
	needs(t, "openssl")
	a := newAuthority(t, how)
	var fetcher *revocation.Fetcher
	var staple []byte
	o.single = true
	o.spoil = func(s *scene) {
		// What we staple is all that strongSwan gets about us.
		port := ocspPort
		if how == byStaple {
			port = deadPort
		}
		s.ourDevice, s.theirDevice = a.issue(s.ourDevice.name, port), a.issue(s.theirDevice.name, ocspPort)
		if how != byNothing {
			a.serve(s, map[behind]*credential{we: s.ourDevice, they: s.theirDevice}[revoked])
		}
		fetcher = revocation.New(revocation.Options{Now: time.Now, Client: client(t, s)})
		t.Cleanup(fetcher.Close)
		if how == byStaple {
			live := *s.ourDevice.leaf
			live.OCSPServer = []string{fmt.Sprintf("http://%v:%d", a.host, ocspPort)}
			staple = must(fetcher.OCSP(t.Context(), &live, a.ca.Anchor()))
		}
	}
	o.peer = func(c *ike.PeerConfig) {
		c.RemoteAuth[0].RequireCRL = true
		if how == byStaple {
			c.LocalAuth[0].OCSP = func() []byte { return staple }
		}
	}
	o.config = func(c *ike.Config) {
		if how != byStaple { // with it, nothing is fetched
			c.Verify = func(q ike.CertQuery) error {
				return router.VerifyPeer(q, fetcher, func(err error) { t.Log("not to be had:", err) })
			}
		}
	}
	if how == byStaple {
		o.more = "ocsp = both"
	}
	o.edit = func(conf string) string {
		return strings.Replace(conf, " cacerts = device.pem\n", " cacerts = device.pem\n revocation = strict\n", 1)
	}
	return newScene(t, o), a
}

// TestStrongSwanRevocation: both ends check that the other one's certificate was not revoked, strictly: by
// a list, by OpenSSL's OCSP responder, which both ask, and by what the other end staples (strongSwan 6).
func TestStrongSwanRevocation(t *testing.T) {
	versions(t, func(t *testing.T, o sceneOptions) {
		roles(t, func(t *testing.T, weInitiate bool) {
			for _, how := range []judged{byList, byOCSP, byStaple, byNothing} {
				if how == byStaple && !o.six {
					continue // 5.9.8 has no RFC 4806
				}
				t.Run(string(how), func(t *testing.T) {
					if how == byNothing {
						sc, _ := judgedScene(t, o, how, nobody)
						sc.refused(t, weInitiate)
						// Who judges first refuses: the responder.
						want := map[bool]ike.Code{true: ike.CodePeerRefused, false: ike.CodeNoCRL}[weInitiate]
						if len(sc.d.refusals) != 1 || sc.d.refusals[0].Code != want {
							t.Errorf("we say %+v, want %s", sc.d.refusals, want)
						}
						return
					}
					t.Run("good", func(t *testing.T) {
						sc, a := judgedScene(t, o, how, nobody)
						sc.connect(t, weInitiate)
						f := sc.flow(t, false)
						f.both("the connection")
						f.lossless(t)
						if sc.ss.said("certificate status is good") == 0 {
							t.Error("strongSwan did not find our certificate good")
						}
						if n := a.listed.Load(); how == byList && n != 2 {
							t.Errorf("the list was fetched %d times, want once by each end", n)
						}
						if how == byStaple && (sc.ss.said("received OCSP response issued by") == 0 || sc.ss.said("sending OCSP status for certificate") == 0) {
							t.Error("strongSwan did not staple, or did not take what we stapled")
						}
					})
					t.Run("ours is revoked", func(t *testing.T) {
						sc, _ := judgedScene(t, o, how, we)
						sc.refused(t, weInitiate)
						if sc.ss.said("certificate was revoked on") == 0 {
							t.Error("strongSwan does not say that our certificate was revoked")
						}
					})
					t.Run("theirs is revoked", func(t *testing.T) {
						sc, _ := judgedScene(t, o, how, they)
						sc.refused(t, weInitiate)
						if len(sc.d.refusals) != 1 || sc.d.refusals[0].Code != ike.CodeRevoked {
							t.Errorf("we say %+v", sc.d.refusals)
						}
					})
				})
			}
		})
	})
}

// refused tries to connect, which must end in nothing.
func (sc *scene) refused(t *testing.T, weInitiate bool) {
	t.Helper()
	if weInitiate {
		if err := sc.d.ep.Initiate("clinic", "net"); err != nil {
			t.Fatal(err)
		}
		sc.d.wait("the failure", func() bool { return len(sc.d.failed) > 0 || len(sc.d.ends) > 0 })
	} else if out, err := sc.ss.try("--initiate", "--child", "net", "--timeout", "20"); err == nil {
		t.Errorf("strongSwan came up:\n%s", out)
	}
	sc.d.wait("nothing", func() bool { return len(sc.d.ike) == 0 && len(sc.d.children) == 0 })
	sc.ss.wait(0, 0)
}
