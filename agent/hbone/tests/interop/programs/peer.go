// The servers of applications.rs behind Go's HTTP/2 server, and the steps of use_most with its client.
package main

import (
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"sync"
)

func serve(w http.ResponseWriter, r *http.Request) {
	_, port, _ := net.SplitHostPort(r.Host)
	if r.Method != http.MethodConnect || port == "5" {
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	w.WriteHeader(http.StatusOK)
	flush := w.(http.Flusher).Flush
	flush()
	hash, length, buffer := fnv.New32a(), 0, make([]byte, 50000)
	for {
		count, err := r.Body.Read(buffer)
		hash.Write(buffer[:count])
		length += count
		if count > 0 && port == "4" {
			panic(http.ErrAbortHandler)
		}
		if port == "1" {
			w.Write(buffer[:count])
			flush()
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			fmt.Println("broken")
			return
		}
	}
	fmt.Println("whole", length, hash.Sum32())
	if port == "2" {
		fmt.Fprint(w, length, " ", hash.Sum32())
	}
}

func server(certificate, key string) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	fmt.Println(listener.Addr().(*net.TCPAddr).Port)
	check((&http.Server{Handler: http.HandlerFunc(serve)}).ServeTLS(listener, certificate, key))
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}

type connection struct {
	io.Reader
	*io.PipeWriter
}

func open(client *http.Transport, address string, port int) (*connection, int) {
	reader, writer := io.Pipe()
	request := &http.Request{
		Method: http.MethodConnect,
		URL:    &url.URL{Scheme: "https", Host: address},
		Host:   fmt.Sprintf("10.0.0.1:%d", port),
		Header: http.Header{},
		Body:   reader,
	}
	response, err := client.RoundTrip(request)
	check(err)
	return &connection{response.Body, writer}, response.StatusCode
}

func random(length int) []byte {
	bytes := make([]byte, length)
	rand.Read(bytes)
	return bytes
}

func echo(client *http.Transport, address string, sent []byte) {
	stream, status := open(client, address, 1)
	if status != 200 {
		panic(status)
	}
	go func() {
		stream.Write(sent)
		stream.Close()
	}()
	received, err := io.ReadAll(stream)
	check(err)
	if !bytes.Equal(received, sent) {
		panic("other bytes came back")
	}
}

func use(address string) {
	client := &http.Transport{
		TLSClientConfig:   &tls.Config{InsecureSkipVerify: true},
		ForceAttemptHTTP2: true,
	}
	echo(client, address, random(5000000))
	sent := random(1000003)
	stream, _ := open(client, address, 2)
	stream.Write(sent)
	stream.Close()
	digest, err := io.ReadAll(stream)
	check(err)
	hash := fnv.New32a()
	hash.Write(sent)
	if string(digest) != fmt.Sprint(len(sent), " ", hash.Sum32()) {
		panic(string(digest))
	}

	stream, _ = open(client, address, 4)
	stream.Write([]byte("x"))
	if _, err := stream.Read(make([]byte, 1)); err == nil || err == io.EOF {
		panic("a reset that is no error")
	}

	stream, _ = open(client, address, 1)
	stream.Write([]byte("x"))
	_, err = io.ReadFull(stream, make([]byte, 1))
	check(err)
	stream.CloseWithError(errors.New("given up"))

	if _, status := open(client, address, 5); status != 503 {
		panic(status)
	}
	var all sync.WaitGroup
	sizes := []int{0, 1, 16383, 16384, 16385, 65535, 65536, 300000}
	for n := range 64 {
		all.Go(func() { echo(client, address, random(sizes[n%len(sizes)])) })
	}
	all.Wait()
}

func main() {
	switch os.Args[1] {
	case "server":
		server(os.Args[2], os.Args[3])
	case "client":
		use("127.0.0.1:" + os.Args[2])
	}
}
