// The join in Kafka Streams: Processor API, exactly_once_v2, an in-memory store with its cache on.

import java.nio.ByteBuffer;
import java.util.Arrays;
import java.util.Map;
import java.util.Properties;
import java.util.concurrent.atomic.AtomicBoolean;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.serialization.ByteArraySerializer;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.Topology;
import org.apache.kafka.streams.processor.api.Processor;
import org.apache.kafka.streams.processor.api.ProcessorContext;
import org.apache.kafka.streams.processor.api.Record;
import org.apache.kafka.streams.state.KeyValueStore;
import org.apache.kafka.streams.state.Stores;

public final class StreamsJoin {
    static final AtomicBoolean SEEN = new AtomicBoolean();
    static int perTrace;
    static boolean idsOnly;

    static final class Join implements Processor<byte[], byte[], byte[], byte[]> {
        private ProcessorContext<byte[], byte[]> context;
        private KeyValueStore<String, byte[]> open;

        @Override
        public void init(ProcessorContext<byte[], byte[]> context) {
            this.context = context;
            this.open = context.getStateStore("open");
        }

        @Override
        public void process(Record<byte[], byte[]> event) {
            if (!SEEN.get() && SEEN.compareAndSet(false, true)) {
                System.out.println("first " + System.currentTimeMillis() / 1000.0);
            }
            byte[] value = event.value();
            byte[] kept = idsOnly ? Arrays.copyOfRange(value, 11, 47) : value;
            String trace = new String(event.key(), java.nio.charset.StandardCharsets.ISO_8859_1);
            byte[] held = open.get(trace);
            int size = held == null ? 2 : held.length;
            ByteBuffer joined = ByteBuffer.allocate(size + 4 + kept.length);
            if (held != null) {
                joined.put(held);
            }
            joined.position(size);
            joined.putInt(kept.length).put(kept);
            short count = (short) (joined.getShort(0) + 1);
            joined.putShort(0, count);
            if (count < perTrace) {
                open.put(trace, joined.array());
                return;
            }
            open.delete(trace);
            byte[] whole = Arrays.copyOfRange(joined.array(), 2, joined.capacity());
            context.forward(event.withValue(whole));
        }
    }

    public static void main(String[] told) {
        perTrace = Integer.parseInt(told[3]);
        idsOnly = told[4].equals("ids");
        Properties p = new Properties();
        p.put(StreamsConfig.APPLICATION_ID_CONFIG, "bench-streams");
        p.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, told[0]);
        p.put(StreamsConfig.STATE_DIR_CONFIG, told[6]);
        p.put(StreamsConfig.PROCESSING_GUARANTEE_CONFIG, StreamsConfig.EXACTLY_ONCE_V2);
        p.put(StreamsConfig.NUM_STREAM_THREADS_CONFIG, 2);
        p.put(StreamsConfig.STATESTORE_CACHE_MAX_BYTES_CONFIG, 256L << 20);
        // The default, 100 ms, commits so often that the cache has little to hold back.
        p.put(StreamsConfig.COMMIT_INTERVAL_MS_CONFIG, 500);
        p.put(StreamsConfig.consumerPrefix("auto.offset.reset"), "earliest");
        p.put(StreamsConfig.consumerPrefix("max.poll.records"), 10_000);
        p.put(StreamsConfig.producerPrefix("compression.type"), "lz4");
        p.put(StreamsConfig.producerPrefix("linger.ms"), 20);
        p.put(StreamsConfig.producerPrefix("batch.size"), 262_144);
        ByteArrayDeserializer in = new ByteArrayDeserializer();
        ByteArraySerializer out = new ByteArraySerializer();
        Topology topology = new Topology();
        topology.addSource("events", in, in, told[1].split(","));
        topology.addProcessor("join", Join::new, "events");
        topology.addStateStore(
            Stores.keyValueStoreBuilder(
                    Stores.inMemoryKeyValueStore("open"), Serdes.String(), Serdes.ByteArray())
                .withCachingEnabled()
                .withLoggingEnabled(Map.of()),
            "join");
        topology.addSink("out", told[2], out, out, "join");
        KafkaStreams streams = new KafkaStreams(topology, p);
        Runtime.getRuntime().addShutdownHook(new Thread(streams::close));
        streams.start();
    }
}
