module timedblock.invalid/toxiproxy_client

go 1.17

require github.com/Shopify/toxiproxy/v2 v2.5.0
