// Every call of Toxiproxy's Go client and every toxic, against the server at os.Args[1].
//
// One line a check: "ok NAME", or "FAILED NAME: WHY"; exit code 1 if any failed. Each check of a
// toxic sees it bite on a connection of its own, and sees it gone once it is removed.
package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	toxiproxy "github.com/Shopify/toxiproxy/v2/client"
)

const patience = 5 * time.Second

var (
	client   *toxiproxy.Client
	upstream string
)

// An upstream that echoes; it hangs up on "bye".
func serve() string {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go echo(conn)
		}
	}()
	return listener.Addr().String()
}

func echo(conn net.Conn) {
	defer conn.Close()
	buffer := make([]byte, 1<<16)
	for {
		read, err := conn.Read(buffer)
		if err != nil || bytes.HasPrefix(buffer[:read], []byte("bye")) {
			return
		}
		if _, err := conn.Write(buffer[:read]); err != nil {
			return
		}
	}
}

// -- what a check says ------------------------------------------------------------------------

type failure string

func expect(holds bool, format string, values ...interface{}) {
	if !holds {
		panic(failure(fmt.Sprintf(format, values...)))
	}
}

func works(err error) {
	if err != nil {
		panic(failure("unexpected error: " + err.Error()))
	}
}

func fails(err error, with string) {
	expect(err != nil, "no error, expected %q", with)
	expect(strings.Contains(err.Error(), with), "error %q, expected %q", err, with)
}

// -- connections ------------------------------------------------------------------------------

func dial(proxy *toxiproxy.Proxy) net.Conn {
	conn, err := net.DialTimeout("tcp", proxy.Listen, patience)
	works(err)
	works(conn.SetDeadline(time.Now().Add(patience)))
	return conn
}

func send(conn net.Conn, data string) {
	_, err := conn.Write([]byte(data))
	works(err)
}

func receive(conn net.Conn, size int) string {
	buffer := make([]byte, size)
	read, err := io.ReadFull(conn, buffer)
	expect(err == nil, "%d of %d bytes came, then %v", read, size, err)
	return string(buffer)
}

// Seconds until the echo of so many bytes was there.
func roundTrip(proxy *toxiproxy.Proxy, size int) float64 {
	conn := dial(proxy)
	defer conn.Close()
	data := strings.Repeat("x", size)
	began := time.Now()
	send(conn, data)
	expect(receive(conn, size) == data, "another echo came")
	return time.Since(began).Seconds()
}

func nothingComes(conn net.Conn) {
	works(conn.SetReadDeadline(time.Now().Add(300 * time.Millisecond)))
	read, err := conn.Read(make([]byte, 1))
	expect(errors.Is(err, os.ErrDeadlineExceeded), "%d bytes and %v came", read, err)
	works(conn.SetReadDeadline(time.Now().Add(patience)))
}

// The connection ends, in order or with a reset, and not by our own limit.
func ends(conn net.Conn) {
	_, err := io.Copy(io.Discard, conn)
	expect(!errors.Is(err, os.ErrDeadlineExceeded), "the connection goes on")
}

func refused(proxy *toxiproxy.Proxy) {
	_, err := net.DialTimeout("tcp", proxy.Listen, patience)
	expect(errors.Is(err, syscall.ECONNREFUSED), "connect gave %v", err)
}

// -- the calls --------------------------------------------------------------------------------

func create(name string) *toxiproxy.Proxy {
	proxy, err := client.CreateProxy(name, "127.0.0.1:0", upstream)
	works(err)
	return proxy
}

func createAndDelete() {
	proxy := create("one")
	expect(proxy.Enabled && !strings.HasSuffix(proxy.Listen, ":0"), "it is %+v", proxy)
	roundTrip(proxy, 10)
	conn := dial(proxy)
	send(conn, "x")
	receive(conn, 1)
	works(proxy.Delete())
	ends(conn)
	refused(proxy)
	fails(proxy.Delete(), "HTTP 404: proxy not found")
}

func newProxyIsSaved() {
	proxy := client.NewProxy()
	proxy.Name, proxy.Listen, proxy.Upstream, proxy.Enabled = "two", "127.0.0.1:0", upstream, false
	works(proxy.Save())
	expect(!proxy.Enabled, "it is enabled")
	proxy.Enabled = true
	works(proxy.Save())
	roundTrip(proxy, 10)
	works(proxy.Delete())
}

func aNameIsTaken() {
	proxy := create("one")
	_, err := client.CreateProxy("one", "127.0.0.1:0", upstream)
	fails(err, "HTTP 409: proxy already exists")
	works(proxy.Delete())
}

func whatIsMissingIsNamed() {
	_, err := client.CreateProxy("", "127.0.0.1:0", upstream)
	fails(err, "HTTP 400: missing required field: name")
	_, err = client.CreateProxy("one", "127.0.0.1:0", "")
	fails(err, "HTTP 400: missing required field: upstream")
}

func aPortIsTaken() {
	proxy := create("one")
	_, err := client.CreateProxy("two", proxy.Listen, upstream)
	fails(err, "HTTP 500: listen tcp "+proxy.Listen+": bind: address already in use")
	works(proxy.Delete())
}

func listed() {
	first, second := create("first"), create("second")
	all, err := client.Proxies()
	works(err)
	expect(len(all) == 2 && all["first"].Listen == first.Listen, "they are %+v", all)
	one, err := client.Proxy("second")
	works(err)
	expect(one.Listen == second.Listen && one.Upstream == upstream, "it is %+v", one)
	_, err = client.Proxy("third")
	fails(err, "HTTP 404: proxy not found")
}

func disabledAndEnabled() {
	proxy := create("one")
	conn := dial(proxy)
	send(conn, "x")
	receive(conn, 1)
	listen := proxy.Listen
	works(proxy.Disable())
	ends(conn)
	refused(proxy)
	works(proxy.Enable())
	expect(proxy.Listen == listen, "it listens on %s now", proxy.Listen)
	roundTrip(proxy, 10)
}

func ledElsewhere() {
	proxy := create("one")
	other := serve()
	proxy.Upstream = other
	works(proxy.Save())
	expect(proxy.Upstream == other && proxy.Enabled, "it is %+v", proxy)
	roundTrip(proxy, 10)
}

func populated() {
	made, err := client.Populate([]toxiproxy.Proxy{
		{Name: "one", Listen: "127.0.0.1:0", Upstream: upstream, Enabled: true},
		{Name: "two", Listen: "127.0.0.1:0", Upstream: upstream},
	})
	works(err)
	expect(len(made) == 2 && made[0].Enabled && !made[1].Enabled, "they are %+v", made)
	roundTrip(made[0], 10)
	made, err = client.Populate([]toxiproxy.Proxy{
		{Name: "one", Listen: "127.0.0.1:0", Upstream: serve(), Enabled: true},
	})
	works(err)
	roundTrip(made[0], 10)
	_, err = client.Populate([]toxiproxy.Proxy{{Name: "three"}})
	fails(err, "HTTP 400: missing required field: upstream at proxy 1")
}

func populatedInPart() {
	one := create("one")
	made, err := client.Populate([]toxiproxy.Proxy{
		{Name: "two", Listen: "127.0.0.1:0", Upstream: upstream, Enabled: true},
		{Name: "three", Listen: one.Listen, Upstream: upstream, Enabled: true},
	})
	fails(err, "HTTP 500")
	expect(len(made) == 1 && made[0].Name == "two", "they are %+v", made)
}

func reset() {
	proxy := create("one")
	_, err := proxy.AddToxic("", "timeout", "", 1, toxiproxy.Attributes{"timeout": 0})
	works(err)
	works(proxy.Disable())
	works(client.ResetState())
	roundTrip(proxy, 10)
	toxics, err := proxy.Toxics()
	works(err)
	expect(len(toxics) == 0, "left are %+v", toxics)
}

// -- toxics: the calls ------------------------------------------------------------------------

func toxicsAreListed() {
	proxy := create("one")
	toxic, err := proxy.AddToxic("", "latency", "", -1, toxiproxy.Attributes{"latency": 1})
	works(err)
	expect(toxic.Name == "latency_downstream" && toxic.Stream == "downstream", "it is %+v", toxic)
	expect(toxic.Toxicity == 1 && toxic.Attributes["jitter"] == 0.0, "it is %+v", toxic)
	_, err = proxy.AddToxic("own", "bandwidth", "upstream", 0.5, toxiproxy.Attributes{"rate": 7})
	works(err)
	toxics, err := proxy.Toxics()
	works(err)
	expect(len(toxics) == 2 && toxics[0].Name == "own", "they are %+v", toxics)
	expect(toxics[0].Toxicity == 0.5 && toxics[0].Attributes["rate"] == 7.0, "%+v", toxics)
	again, err := client.Proxy("one")
	works(err)
	expect(len(again.ActiveToxics) == 2, "the proxy shows %+v", again.ActiveToxics)
	// They outlive the listener.
	works(proxy.Disable())
	works(proxy.Enable())
	toxics, err = proxy.Toxics()
	works(err)
	expect(len(toxics) == 2, "left are %+v", toxics)
}

func toxicsAreUpdated() {
	proxy := create("one")
	_, err := proxy.AddToxic("slow", "latency", "", 1, toxiproxy.Attributes{"latency": 1000, "jitter": 1})
	works(err)
	expect(roundTrip(proxy, 10) >= 0.9, "no latency")
	toxic, err := proxy.UpdateToxic("slow", -1, toxiproxy.Attributes{"latency": 100})
	works(err)
	expect(toxic.Attributes["latency"] == 100.0 && toxic.Attributes["jitter"] == 1.0, "%+v", toxic)
	took := roundTrip(proxy, 10)
	expect(took >= 0.09 && took < 0.8, "it took %f", took)
	toxic, err = proxy.UpdateToxic("slow", 0, toxiproxy.Attributes{"latency": 1000})
	works(err)
	expect(toxic.Toxicity == 0, "it is %+v", toxic)
	expect(roundTrip(proxy, 10) < 0.8, "latency without toxicity")
	_, err = proxy.UpdateToxic("none", 1, toxiproxy.Attributes{})
	fails(err, "HTTP 404: toxic not found")
}

func toxicsByTheClient() {
	proxy := create("one")
	options := &toxiproxy.ToxicOptions{
		ProxyName: "one", ToxicName: "own", ToxicType: "timeout", Stream: "downstream",
		Toxicity: 1, Attributes: toxiproxy.Attributes{"timeout": 0},
	}
	_, err := client.AddToxic(options)
	works(err)
	conn := dial(proxy)
	send(conn, "x")
	nothingComes(conn)
	options.Toxicity = 0
	_, err = client.UpdateToxic(options)
	works(err)
	roundTrip(proxy, 10)
	works(client.RemoveToxic(options))
	fails(client.RemoveToxic(options), "HTTP 404: toxic not found")
	options.ProxyName = "none"
	_, err = client.AddToxic(options)
	fails(err, "HTTP 404: proxy not found")
}

func toxicsAreRefused() {
	proxy := create("one")
	_, err := proxy.AddToxic("", "poison", "", 1, nil)
	fails(err, "HTTP 400: invalid toxic type")
	_, err = proxy.AddToxic("", "latency", "sideways", 1, nil)
	fails(err, "HTTP 400: stream was invalid, can be either upstream or downstream")
	_, err = proxy.AddToxic("", "latency", "", 1, toxiproxy.Attributes{"latency": "long"})
	fails(err, "HTTP 400: bad request body: ")
	_, err = proxy.AddToxic("", "latency", "", 1, nil)
	works(err)
	_, err = proxy.AddToxic("", "latency", "", 1, nil)
	fails(err, "HTTP 409: toxic already exists")
}

// -- toxics: what they do ---------------------------------------------------------------------

// Run the check with the toxic in force; afterwards bytes pass as they did.
func with(kind, stream string, attributes toxiproxy.Attributes, check func(*toxiproxy.Proxy)) {
	proxy := create("one")
	roundTrip(proxy, 10000)
	_, err := proxy.AddToxic("it", kind, stream, 1, attributes)
	works(err)
	check(proxy)
	works(proxy.RemoveToxic("it"))
	took := roundTrip(proxy, 10000)
	expect(took < 0.8, "it goes on: %f s", took)
}

func takes(seconds float64, size int) func(*toxiproxy.Proxy) {
	return func(proxy *toxiproxy.Proxy) {
		took := roundTrip(proxy, size)
		expect(took >= seconds*0.9, "%d bytes took %f s, expected %f", size, took, seconds)
	}
}

func noop() { with("noop", "downstream", nil, takes(0, 100)) }
func latencyDown() {
	with("latency", "downstream", toxiproxy.Attributes{"latency": 1000}, takes(1, 100))
}
func latencyUp() { with("latency", "upstream", toxiproxy.Attributes{"latency": 1000}, takes(1, 100)) }

func jitter() {
	attributes := toxiproxy.Attributes{"latency": 60, "jitter": 50}
	with("latency", "", attributes, func(proxy *toxiproxy.Proxy) {
		lowest, highest := patience.Seconds(), 0.0
		for i := 0; i < 15; i++ {
			took := roundTrip(proxy, 10)
			if took < lowest {
				lowest = took
			}
			if took > highest {
				highest = took
			}
		}
		expect(lowest >= 0.009 && highest-lowest > 0.02, "%f to %f s", lowest, highest)
	})
}

func latencyOnAnOpenConnection() {
	proxy := create("one")
	conn := dial(proxy)
	send(conn, "x")
	receive(conn, 1)
	_, err := proxy.AddToxic("", "latency", "", 1, toxiproxy.Attributes{"latency": 300})
	works(err)
	began := time.Now()
	send(conn, "x")
	receive(conn, 1)
	expect(time.Since(began) >= 270*time.Millisecond, "it took %v", time.Since(began))
}

func bandwidthDown() {
	with("bandwidth", "downstream", toxiproxy.Attributes{"rate": 10}, takes(1, 10000))
}

func bandwidthUp() {
	with("bandwidth", "upstream", toxiproxy.Attributes{"rate": 10}, takes(1, 10000))
}

func slicer() {
	attributes := toxiproxy.Attributes{"average_size": 10, "size_variation": 0, "delay": 20000}
	with("slicer", "downstream", attributes, takes(9*0.020, 100))
}

func slowClose() {
	with("slow_close", "downstream", toxiproxy.Attributes{"delay": 500}, func(proxy *toxiproxy.Proxy) {
		conn := dial(proxy)
		send(conn, "x")
		receive(conn, 1)
		began := time.Now()
		send(conn, "bye")
		ends(conn)
		expect(time.Since(began) >= 450*time.Millisecond, "closed after %v", time.Since(began))
	})
}

func timeoutCloses() {
	with("timeout", "downstream", toxiproxy.Attributes{"timeout": 500}, func(proxy *toxiproxy.Proxy) {
		conn := dial(proxy)
		began := time.Now()
		send(conn, "x")
		nothingComes(conn)
		ends(conn)
		expect(time.Since(began) >= 450*time.Millisecond, "closed after %v", time.Since(began))
	})
}

func timeoutNever() {
	var conn net.Conn
	with("timeout", "upstream", toxiproxy.Attributes{"timeout": 0}, func(proxy *toxiproxy.Proxy) {
		conn = dial(proxy)
		send(conn, "x")
		nothingComes(conn)
	})
	ends(conn) // when the toxic is removed
}

func limitData() {
	with("limit_data", "downstream", toxiproxy.Attributes{"bytes": 30}, func(proxy *toxiproxy.Proxy) {
		conn := dial(proxy)
		send(conn, strings.Repeat("x", 20))
		receive(conn, 20)
		send(conn, strings.Repeat("x", 20))
		receive(conn, 10)
		read, err := conn.Read(make([]byte, 1))
		expect(read == 0 && err != nil && !errors.Is(err, os.ErrDeadlineExceeded), "%d %v", read, err)
	})
}

func resetPeer() {
	for _, wait := range []int{0, 300} {
		attributes := toxiproxy.Attributes{"timeout": wait}
		with("reset_peer", "downstream", attributes, func(proxy *toxiproxy.Proxy) {
			conn := dial(proxy)
			began := time.Now()
			send(conn, "x")
			_, err := conn.Read(make([]byte, 1))
			expect(errors.Is(err, syscall.ECONNRESET), "the read gave %v", err)
			took := time.Since(began)
			expect(took >= time.Duration(wait)*time.Millisecond*9/10, "reset after %v", took)
		})
		clean()
	}
}

func toxicity() {
	proxy := create("one")
	attributes := toxiproxy.Attributes{"bytes": 0}
	_, err := proxy.AddToxic("", "limit_data", "downstream", 0.5, attributes)
	works(err)
	served := 0
	for i := 0; i < 60; i++ {
		conn := dial(proxy)
		send(conn, "x")
		if read, _ := conn.Read(make([]byte, 1)); read == 1 {
			served++
		}
		conn.Close()
	}
	expect(served > 10 && served < 50, "%d of 60 connections were spared", served)
}

func severalAtOnce() {
	proxy := create("one")
	for name, stream := range map[string]string{"there": "upstream", "back": "downstream"} {
		_, err := proxy.AddToxic(name, "latency", stream, 1, toxiproxy.Attributes{"latency": 500})
		works(err)
	}
	_, err := proxy.AddToxic("more", "latency", "downstream", 1, toxiproxy.Attributes{"latency": 1})
	works(err)
	took := roundTrip(proxy, 10)
	expect(took >= 0.9, "both took %f s", took)
	works(proxy.RemoveToxic("back"))
	took = roundTrip(proxy, 10)
	expect(took >= 0.45 && took < 0.9, "one took %f s", took)
}

// -- all of it --------------------------------------------------------------------------------

var checks = []struct {
	name string
	run  func()
}{
	{"create-and-delete", createAndDelete}, {"new-proxy-is-saved", newProxyIsSaved},
	{"a-name-is-taken", aNameIsTaken}, {"what-is-missing-is-named", whatIsMissingIsNamed},
	{"a-port-is-taken", aPortIsTaken}, {"listed", listed},
	{"disabled-and-enabled", disabledAndEnabled}, {"led-elsewhere", ledElsewhere},
	{"populated", populated}, {"populated-in-part", populatedInPart}, {"reset", reset},
	{"toxics-are-listed", toxicsAreListed}, {"toxics-are-updated", toxicsAreUpdated},
	{"toxics-by-the-client", toxicsByTheClient}, {"toxics-are-refused", toxicsAreRefused},
	{"noop", noop}, {"latency-downstream", latencyDown}, {"latency-upstream", latencyUp},
	{"jitter", jitter}, {"latency-on-an-open-connection", latencyOnAnOpenConnection},
	{"bandwidth-downstream", bandwidthDown}, {"bandwidth-upstream", bandwidthUp},
	{"slicer", slicer}, {"slow-close", slowClose}, {"timeout-closes", timeoutCloses},
	{"timeout-never", timeoutNever}, {"limit-data", limitData}, {"reset-peer", resetPeer},
	{"toxicity", toxicity}, {"several-at-once", severalAtOnce},
}

func clean() {
	all, err := client.Proxies()
	works(err)
	for _, proxy := range all {
		works(proxy.Delete())
	}
}

func outcome(run func()) (why string) {
	defer func() {
		if problem := recover(); problem != nil {
			why = fmt.Sprint(problem)
		}
	}()
	clean()
	run()
	clean()
	return ""
}

func main() {
	client, upstream = toxiproxy.NewClient(os.Args[1]), serve()
	failed := false
	for _, check := range checks {
		if why := outcome(check.run); why != "" {
			fmt.Printf("FAILED %s: %s\n", check.name, why)
			failed = true
		} else {
			fmt.Printf("ok %s\n", check.name)
		}
	}
	if failed {
		os.Exit(1)
	}
}
