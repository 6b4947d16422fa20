// Load for the proxy benchmark: an echo server, and clients that ask it through an address.
//
//	proxyload echo                            prints HOST:PORT and serves until its input ends
//	proxyload closed ADDRESS CONNECTIONS SECONDS      prints requests a second
//	proxyload open   ADDRESS CONNECTIONS SECONDS RATE prints each request's seconds
//
// The open loop counts from the instant that a request was due, so that a stalled one counts for
// those that it holds up.
package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const size = 64

func fail(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func number(text string) float64 {
	value, err := strconv.ParseFloat(text, 64)
	fail(err)
	return value
}

func echo() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	fail(err)
	fmt.Println(listener.Addr())
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go answer(conn)
		}
	}()
	io.Copy(io.Discard, os.Stdin)
}

func answer(conn net.Conn) {
	defer conn.Close()
	buffer := make([]byte, 1<<16)
	for {
		read, err := conn.Read(buffer)
		if err != nil {
			return
		}
		if _, err := conn.Write(buffer[:read]); err != nil {
			return
		}
	}
}

func ask(conn net.Conn, buffer []byte) {
	_, err := conn.Write(buffer)
	fail(err)
	_, err = io.ReadFull(conn, buffer)
	fail(err)
}

func dial(address string, count int) []net.Conn {
	conns := make([]net.Conn, count)
	for i := range conns {
		conn, err := net.Dial("tcp", address)
		fail(err)
		conns[i] = conn
		ask(conn, make([]byte, size))
	}
	return conns
}

func closed(address string, count int, seconds float64) {
	var total int64
	var group sync.WaitGroup
	conns := dial(address, count)
	began := time.Now()
	end := began.Add(time.Duration(seconds * float64(time.Second)))
	for _, conn := range conns {
		group.Add(1)
		go func(conn net.Conn) {
			defer group.Done()
			buffer := make([]byte, size)
			done := 0
			for time.Now().Before(end) {
				ask(conn, buffer)
				done++
			}
			atomic.AddInt64(&total, int64(done))
		}(conn)
	}
	group.Wait()
	fmt.Println(float64(total) / time.Since(began).Seconds())
}

// Go's own timers are right to a millisecond only; the kernel's are to 0.1.
func sleepUntil(due time.Time) {
	if left := time.Until(due); left > 0 {
		pause := syscall.NsecToTimespec(int64(left))
		syscall.Nanosleep(&pause, nil)
	}
}

func open(address string, count int, seconds, rate float64) {
	var lock sync.Mutex
	var group sync.WaitGroup
	var took []float64
	conns := dial(address, count)
	period := time.Duration(float64(time.Second) / rate)
	began := time.Now().Add(10 * time.Millisecond)
	for first, conn := range conns {
		group.Add(1)
		go func(first int, conn net.Conn) {
			defer group.Done()
			var mine []float64
			buffer := make([]byte, size)
			for i := first; i < int(seconds*rate); i += count {
				due := began.Add(time.Duration(i) * period)
				sleepUntil(due)
				ask(conn, buffer)
				mine = append(mine, time.Since(due).Seconds())
			}
			lock.Lock()
			took = append(took, mine...)
			lock.Unlock()
		}(first, conn)
	}
	group.Wait()
	for _, one := range took {
		fmt.Println(one)
	}
}

func main() {
	switch os.Args[1] {
	case "echo":
		echo()
	case "closed":
		closed(os.Args[2], int(number(os.Args[3])), number(os.Args[4]))
	case "open":
		open(os.Args[2], int(number(os.Args[3])), number(os.Args[4]), number(os.Args[5]))
	}
}
